"""The list of mutations fits the code: each mutation changes one existing line and names existing tests.

`python tests/mutations.py` checks that the tests detect them. It takes minutes.
"""

import ast
import re

import pytest
from mutations import MUTATIONS, ROOT, Mutation, copy_checkout, try_mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[mutation.name for mutation in MUTATIONS])
def test_a_mutation_changes_one_existing_line_into_valid_python(mutation: Mutation) -> None:
    text = (ROOT / mutation.file).read_text(encoding="utf-8")
    assert text.count(mutation.old) == 1 and mutation.new != mutation.old
    broken = ast.parse(text.replace(mutation.old, mutation.new))
    assert ast.dump(broken) != ast.dump(ast.parse(text))
    for test in mutation.tests:
        file, *function = test.split("::")
        content = (ROOT / file).read_text(encoding="utf-8")
        assert all(
            re.search(rf"^def {name.split('[')[0]}\(", content, flags=re.MULTILINE) for name in function
        )


def test_names_are_unique_and_all_folders_are_covered() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 50
    assert {mutation.file.split("/")[0] for mutation in MUTATIONS} == {"lib", "launch", "kernels"}


def test_the_verdicts_detected_undetected_and_broken(tmp_path) -> None:
    copy = copy_checkout(tmp_path)
    before = (copy / "lib/evaluation/metrics.py").read_bytes()
    tests = ("tests/lib/evaluation/test_metrics.py::test_f1_without_positives_is_zero_not_undefined",)

    def verdict_of(old: str, new: str) -> tuple[str, str]:
        return try_mutation(copy, Mutation("x", "lib/evaluation/metrics.py", old, new, tests))

    detected = verdict_of("labels=[0, 1]).tolist()", "labels=[1, 0]).tolist()")
    assert detected == ("detected", "test_metrics.py::test_f1_without_positives_is_zero_not_undefined")
    assert verdict_of("(1 - level) / 2", "0.5")[0] == "UNDETECTED"
    assert verdict_of("no such text", "")[0] == "BROKEN"
    assert (
        verdict_of("import numpy as np", "import numpie as np")[0] == "BROKEN"
    )  # pytest cannot collect the tests
    assert (copy / "lib/evaluation/metrics.py").read_bytes() == before
