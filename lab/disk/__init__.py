"""The disk: what a training leaves in its folder, written atomically, hashed, and verified when read."""
