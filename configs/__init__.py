"""Study configs, one file a study; installed as `lab.configs`."""
