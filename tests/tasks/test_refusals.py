"""Options that no task can have: each is refused by name and value, in one line that says what would do."""

import dataclasses

import pytest

from lab.tasks import (
    Addition,
    Anchor,
    Cogs,
    Composition,
    CopyStrings,
    Fields,
    GraphPath,
    IncreasingSubsequence,
    Kinship,
    Markov,
    Ontology,
    QuestionFiles,
    Rules,
    Scan,
    Shapes,
    Text,
    TwoHop,
    shapes,
)

CYCLIC = ((0.1, 0.8, 0.1), (0.0, 0.3, 0.7), (0.9, 0.1, 0.0))
BASES = {
    "addition": Addition(99, (40, 60)),
    "anchor": Anchor(),
    "composition": Composition("34_wrong", 4, 9, 0),
    "fields": Fields("advection_diffusion", size=16, horizon=2, high=5),
    "copy_strings": CopyStrings(longest=5, n_letters=6),
    "increasing_subsequence": IncreasingSubsequence(),
    "graph_path": GraphPath(hops_train=(1, 2), hops_ood=(3,), width=2, n_parents=1, n_concepts=12),
    "kinship": Kinship(hops_train=(2, 3), hops_ood=(4,)),
    "markov": Markov((0.75, 0.19, 0.05, 0.01), (), 0.0, 0.5, (), 8),
    "matrix": Markov((), (), 0.0, 0.0, CYCLIC, 8),
    "ontology": Ontology((1, 2), (3,), n_chains=2, n_concepts=12, form="true_false", chain_of_thought=False),
    "question_files": QuestionFiles("a", "", 0.2, 10, 10),
    "rules": Rules(hops_train=(1, 2), hops_ood=(3,), width=2),
    "scan": Scan(path="folder", hf_id="", length=24, vocab_size=30, variant="addprim_jump"),
    "cogs": Cogs(path="folder", hf_id="", length=70, vocab_size=80, target_form="variable_free"),
    "shapes": Shapes(size=16, n_times=50, images_per_class=3),
    "two_hop": TwoHop("layers", n_entities=6, n_relations=3, out_degree=3, ood_share=0.5),
    "two_hop_graph": TwoHop("graph", n_entities=9, n_relations=5, out_degree=3, ood_share=0.3),
    "text": Text("text.txt", "", "line", "word", 100, 4, "all", 0.1, ""),
}
REFUSED = {
    "addition": [
        (dict(high=0), r"task\.high=0: a number from 1 to 999"),
        (dict(high=1000, block=(400, 600)), r"task\.high=1000: a number from 1 to 999"),
        (dict(block=(60, 40)), r"task\.block=\(60, 40\): smallest and greatest operand, from 0 to task\.high=99"),
        (dict(block=(-1, 40)), r"task\.block=\(-1, 40\): .* from 0 to"),
        (dict(block=(40, 100)), r"task\.block=\(40, 100\): .* from 0 to task\.high=99"),
        (dict(block=(40,)), r"task\.block=\(40,\): smallest and greatest operand"),
        (dict(block=[40, 60]), r"task\.block=\[40, 60\]: smallest and greatest operand"),
        (dict(block=(0.5, 60)), r"task\.block=\(0\.5, 60\): smallest and greatest operand"),
        (
            dict(block=(0, 99)),
            r"task\.block=\(0, 99\): leaves no pairs for split 'train'; a smaller one than 0 \.\.\. 99",
        ),
        (dict(high=3, block=(0, 2)), r"task\.block=\(0, 2\): leaves no pairs for split 'test_seen'"),
    ],
    "anchor": [
        (dict(anchors=()), "at least one"),
        (dict(anchors=(1, 1, 2, 3)), "none twice"),
        (dict(shifts=(1, 0)), "one for each"),
        (dict(low=9, high=8), "no keys"),
        (dict(anchors=(1, 2, 3, 50)), "none may be a key"),
        (dict(vocab_size=101), r"task\.vocab_size=101: tokens and labels span 1 \.\.\. 101"),
        (dict(shifts=(-6, 0, 0, 0)), "span -1"),
        (dict(length=1), r"task\.length=1: must be at least 2"),
    ],
    "composition": [
        (dict(setting="34wrong"), r"task\.setting='34wrong': one of 34_wrong, 34_unseen, all_pairs"),
        (dict(n_anchors=5), r"task\.n_anchors=5: one of 4, 9"),
        (dict(modulus=6), r"task\.modulus=6: one of 7, 8, 9"),
        (dict(noise_groups=7), r"task\.noise_groups=7: a number from 0 to 6"),
        (dict(noise_groups=1, n_anchors=9), r"task\.noise_groups: the published wrong labels are for .*n_anchors=4"),
        (dict(length=2), r"task\.length=2: from 3 to task\.modulus \+ 2 = 11"),
        (dict(length=12), r"task\.length=12: from 3 to task\.modulus \+ 2 = 11"),
        (dict(length=10, modulus=7), r"task\.length=10: from 3 to task\.modulus \+ 2 = 9"),
        (dict(low=4), r"task\.low=4, task\.high=99: keys must be above the anchors 1 \.\.\. 4"),
        (dict(high=27), r"task\.low=20, task\.high=27: .* at least task\.modulus=9 many"),
        (dict(low=16), r"task\.vocab_size=201: labels span 0 \.\.\. 109, 0 is unused"),
        (dict(vocab_size=109), r"task\.vocab_size=109: labels span 4 \.\.\. 109"),
    ],
    "fields": [
        (dict(equation="heat"), r"task\.equation='heat': one of navier_stokes, advection_diffusion, burgers"),
        (dict(start="noise"), r"task\.start='noise': one of gaussian, two_scales"),
        (dict(size=15), r"task\.size=15: expected an even number of grid points"),
        (dict(size=6), r"task\.size=6: expected an integer of at least 8"),
        (dict(high=6), r"task\.high=6: above task\.low=2, and at most 5, .* a grid of 16 has and one of 16 keeps"),
        (dict(high=8, refine=2), r"task\.high=8: above task\.low=2, and at most 7, .* one of 32 keeps"),
        (dict(high=2), r"task\.high=2: above task\.low=2"),
        (dict(step=0.1, interval=0.2), r"task\.step=0\.1: unstable; at most 0\.089 at task\.speed=1"),
        (dict(step=0.03), r"task\.step=0\.03: task\.interval=0\.1 must be a multiple of it"),
        (dict(step=0.2), r"task\.step=0\.2: task\.interval=0\.1 must be a multiple"),
        (dict(step=0.0), r"task\.step=0\.0: task\.interval"),
        (dict(viscosity=-1.0), r"task\.viscosity=-1\.0: must be at least 0"),
        (dict(precision="float16"), r"task\.precision='float16': one of float32, float64"),
        (dict(horizon=0), r"task\.horizon=0: expected an integer of at least 1"),
        (dict(n_test=0), r"task\.n_test=0: expected"),
    ],
    "copy_strings": [
        (dict(longest=0), r"task\.longest=0: must be at least 1"),
        (dict(shortest=6), r"task\.shortest=6: a number from 1 to 5"),
        (dict(n_letters=25), r"task\.n_letters=25: an even number of at least 4"),
        (dict(n_letters=2), r"task\.n_letters=2: an even number of at least 4"),
    ],
    "increasing_subsequence": [
        (dict(longest=1, shortest=1), r"task\.longest=1: must be at least 2"),
        (dict(shortest=21), r"task\.shortest=21: a number from 1 to 20"),
        (dict(band=20), r"task\.band=20: a number from 0 to 19"),
        (dict(n_values=31), r"task\.n_values=31: an even number of at least 4"),
    ],
    "graph_path": [
        (dict(n_parents=3), r"task\.n_parents=3: one of 1, 2"),
        (dict(width=1, n_parents=2), r"task\.width=1: at least task\.n_parents=2"),
        (dict(width=0), r"task\.width=0: at least"),
        (dict(n_concepts=11), r"task\.n_concepts=11: the graphs need 12, there are 126"),
        (dict(width=1, n_concepts=9), r"task\.n_concepts=9: the graphs need 10, there are 126"),
        (dict(n_concepts=200), r"task\.n_concepts=200: the graphs need 12, there are 126"),
        (dict(hops_ood=(1,)), r"task\.hops_ood=\(1,\): all more"),
    ],
    "two_hop": [
        (dict(world="tree"), r"task\.world='tree': one of layers, graph"),
        (dict(asked="why"), r"task\.asked='why': one of plain, relation, question"),
        (dict(n_entities=1), r"task\.n_entities=1: expected an integer of at least 2"),
        (dict(out_degree=2), r"task\.out_degree=2: 1 or 3, of task\.n_relations=3"),
        (dict(out_degree=1, n_relations=7), r"task\.n_entities=6: at least task\.n_relations=7"),
        (dict(three_hop=True), r"task\.three_hop=True: objects of world 'layers' have no facts"),
        (dict(ood_share=0.0), r"task\.ood_share=0\.0: leaves no question of two hops out of distribution"),
        (dict(ood_share=1.1), r"task\.ood_share=1\.1: a number from 0 to 1"),
        (dict(ratio=1.0), r"task\.ratio=1\.0: from 0 to 0\.75"),
        (dict(ratio=0.1, ood_share=1.0), r"task\.ratio=0\.1: from 0 to 0,"),
        (dict(identity=2.0), r"task\.identity=2\.0: a number from 0 to 1"),
        (dict(xi_leaking=-0.1), r"task\.xi_leaking=-0\.1: a number from 0 to 1"),
        (dict(world_seed=-1), r"task\.world_seed=-1: a number from 0"),
    ],
    "two_hop_graph": [
        (dict(out_degree=6), r"task\.out_degree=6: 1 to 5, of task\.n_relations=5"),
        (dict(ratio=50.0), r"task\.ratio=50\.0: from 0 to \d"),
    ],
    "kinship": [
        (dict(hops_train=(1, 2)), r"task\.hops_train=\(1, 2\): distinct numbers of steps, 2 or more"),
        (dict(hops_ood=(16,)), r"task\.hops_ood=\(16,\): at most 15"),
        (dict(hops_ood=(3,)), r"task\.hops_ood=\(3,\): all more"),
    ],
    "markov": [
        (dict(stationary=()), r"task.stationary=\(\): at least two positive probabilities"),
        (dict(stationary=(0.5, 0.6)), "with sum 1"),
        (dict(stationary=(1.0, 0.0)), "positive"),
        (dict(stationary=("a", 0.5)), "a tuple of numbers"),
        (dict(asymmetry=(1.0, -1.0)), "empty, or 4 numbers with sum 0"),
        (dict(asymmetry=(1.0, 0.0, 0.0, 0.0)), "sum 0"),
        (dict(asymmetry=(0.0, 0.0, 1.0, -1.0), delta=0.01), r"task.delta=0.01: .* must be positive"),
        (dict(stay=1.0), "task.stay=1.0: a probability below 1"),
        (dict(length=0), "task.length=0: must be at least 1"),
        (dict(transition=CYCLIC), "task.transition says it all; leave this empty"),
        (dict(transition=CYCLIC, stationary=()), r"task.stay=0.5: .* leave this 0"),
    ],
    "matrix": [
        (dict(transition=((1.0,),)), "at least two rows"),
        (dict(transition=((0.5, 0.5), (1.0,))), "at least two rows"),
        (dict(transition=((0.5, 0.5), (0.5, 0.6))), "with sum 1"),
        (dict(transition=((1.5, -0.5), (0.5, 0.5))), "with sum 1"),
        (dict(transition=((1.0, 0.0), (0.5, 0.5))), "these fall into 2 classes"),
        (dict(transition=([0.5, 0.5], [0.5, 0.5])), "a tuple of tuples"),
    ],
    "ontology": [
        (dict(n_chains=1), r"task\.n_chains=1: a number from 2 to 4"),
        (dict(n_chains=5, n_concepts=40), r"task\.n_chains=5: a number from 2 to 4"),
        (dict(n_concepts=5), r"task\.n_concepts=5: from .* = 6 to 126"),
        (dict(n_concepts=127), r"task\.n_concepts=127: from .* = 6 to 126"),
        (dict(form="closed"), r"task\.form='closed': one of true_false, cloze"),
        (dict(hops_ood=(33,), n_concepts=66), r"task\.hops_ood=\(33,\): at most 32"),
        (dict(hops_train=()), r"task\.hops_train=\(\): distinct numbers of steps, 1 or more"),
        (dict(hops_train=(0, 1)), r"task\.hops_train=\(0, 1\): distinct numbers"),
        (dict(hops_ood=(3, 3)), r"task\.hops_ood=\(3, 3\): distinct numbers"),
        (dict(hops_ood=(3.5,)), r"task\.hops_ood=\(3\.5,\): distinct numbers"),
        (dict(hops_ood=(2, 3)), r"task\.hops_ood=\(2, 3\): all more than those of task\.hops_train=\(1, 2\)"),
    ],
    "question_files": [
        (dict(path=""), r"task\.path='': the path"),
        (dict(test_share=1.0), r"task\.test_share=1\.0: a share"),
        (dict(test_path="b"), r"task\.test_path='b', task\.test_share=0\.2: give one"),
        (dict(test_share=0.0), r"task\.test_path='', task\.test_share=0\.0: give one"),
        (dict(length=0), r"task\.length=0: must be at least 1"),
        (dict(vocab_size=1), r"task\.vocab_size=1: must be at least 2"),
    ],
    "rules": [
        (dict(width=0), r"task\.width=0: must be at least 1"),
        (dict(width=10), r"task\.width=10, task\.hops_ood=\(3,\): at most 32 .* \+ 2 = 35 are needed"),
        (dict(hops_ood=(2,)), r"task\.hops_ood=\(2,\): all more"),
    ],
    "scan": [
        (dict(variant="jump"), r"task\.variant='jump': one of simple, addprim_jump, addprim_turn_left, length"),
        (dict(hf_id="scan"), r"task\.path='.*', task\.hf_id='scan': give one of them"),
        (dict(path=""), r"task\.path='', task\.hf_id='': give one of them"),
        (dict(length=1), r"task\.length=1: must be at least 2"),
        (dict(vocab_size=3), r"task\.vocab_size=3: must be at least 4"),
        (dict(train_items=-1), r"task\.train_items=-1: must be at least 0"),
    ],
    "cogs": [
        (dict(target_form="short"), r"task\.target_form='short': one of original, variable_free"),
        (dict(evaluated=("valid",)), r"task\.evaluated=\('valid',\): a tuple of dev, test, gen"),
        (dict(evaluated="gen"), r"task\.evaluated='gen': a tuple of dev, test, gen"),
    ],
    "shapes": [
        (dict(size=4), "task.size=4: must be at least 8"),
        (dict(n_times=10), "task.n_times=10: must be at least 20"),
        (dict(images_per_class=-1), "task.images_per_class=-1: must be at least 0"),
        (dict(trained=()), r"task.trained=\(\): some of 000, 001"),
        (dict(trained=("000", "000")), "task.trained=.*each once"),
        (dict(trained=("000", "0000")), "task.trained=.*some of 000, 001"),
        (dict(trained=shapes.CLASSES), "task.trained=.*not all"),
    ],
    "text": [
        (dict(path=""), "--config.task.path=FILE"),
        (dict(loss="first"), "task.loss='first': one of last, all"),
        (dict(length=0), "task.length=0: must be at least 1"),
        (dict(separator="tab"), "task.separator='tab': one of line"),
        (dict(vocab_size=0), "task.vocab_size=0: must be at least 1"),
        (dict(column=""), "task.column='': the name of the column that holds the text"),
    ],
}


@pytest.mark.parametrize(
    ("task", "changes", "message"), [(name, *case) for name, cases in REFUSED.items() for case in cases]
)
def test_impossible_options_are_refused(task, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        dataclasses.replace(BASES[task], **changes)
    assert "\n" not in str(error.value)


def test_the_least_of_an_option_is_accepted():
    assert Anchor(vocab_size=102, length=2).length == 2
    assert dataclasses.replace(BASES["scan"], length=2, vocab_size=4, train_items=0).length == 2
