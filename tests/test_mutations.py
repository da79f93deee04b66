"""The list of mutations fits the code: each breaks one line that is there, and names tests that are there.

Whether the tests notice is a matter of minutes: python tests/mutations.py.
"""

import ast
import re

import pytest
from mutations import MUTATIONS, ROOT, Mutation, copy_checkout, try_one


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[mutation.name for mutation in MUTATIONS])
def test_a_mutation_breaks_one_line_that_is_there_and_leaves_python(mutation: Mutation) -> None:
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


def test_names_are_unique_and_the_subjects_are_covered() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 50
    assert {mutation.file.split("/")[0] for mutation in MUTATIONS} == {"lib", "launch", "kernels"}


def test_what_is_noticed_what_is_not_and_what_is_no_mutation(tmp_path) -> None:
    copy = copy_checkout(tmp_path)
    before = (copy / "lib/evaluation/metrics.py").read_bytes()
    tests = ("tests/lib/evaluation/test_metrics.py::test_nothing_found_is_zero_not_undefined",)

    def tried(old: str, new: str) -> tuple[str, str]:
        return try_one(copy, Mutation("x", "lib/evaluation/metrics.py", old, new, tests))

    noticed = tried("labels=[0, 1]).tolist()", "labels=[1, 0]).tolist()")
    assert noticed == ("noticed", "test_metrics.py::test_nothing_found_is_zero_not_undefined")
    assert tried("(1 - level) / 2", "0.5")[0] == "UNNOTICED"
    assert tried("no such text", "")[0] == "BROKEN"
    assert tried("import numpy as np", "import numpie as np")[0] == "BROKEN"  # no test had a say
    assert (copy / "lib/evaluation/metrics.py").read_bytes() == before
