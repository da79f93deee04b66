"""Nothing that looks like a secret is built, sent or shown, and our own sources are not mistaken for one."""

import json

import pytest
from test_bundle import copied_tree

from launch import ROOT
from launch.errors import LaunchError
from launch.experiments import load_experiment
from launch.kaggle_api.client import Kaggle
from launch.kaggle_api.errors import RefusedError
from launch.packaging.builder import build, read_checkout
from launch.packaging.check import check
from launch.packaging.secret_scan import clean, own_secrets, refuse_secrets, secrets_in
from launch.plan import plan_kernels

# Put together here, so that no scanner takes this file for a leak.
HEX, WORD = "0123456789abcdef", "aB3dE6gH9kL2mN5pQ8rS1tU4vW7xY0z"
PLANTED = {
    "a Kaggle token": ["KGAT_" + HEX * 2],
    "a Kaggle key": [
        f'"key": "{HEX * 2}"',
        f"KAGGLE_KEY={HEX * 2}",
        json.dumps(json.dumps({"username": "a", "key": HEX * 2})),
    ],
    "a Hugging Face token": ["hf_" + WORD + "AB"],
    "a GitHub token": ["gh" + "p_" + WORD + "Abcde", "github_" + "pat_11ABCDEFG0" + WORD + "_" + WORD],
    "a GitLab token": ["glpat" + "-" + WORD[:20]],
    "an AWS access key": ["AK" + "IAIOSFODNN7EXAMPLE", "AS" + "IAIOSFODNN7EXAMPLE"],
    "an AWS secret key": ["aws_secret_access_key = " + WORD + "/bPxRfiCY"],
    "a Google key": ["AIza" + WORD + "-_ab"],
    "a Google token": ["ya29" + ".a0" + WORD],
    "a Slack token": ["xox" + "b-123456789012-" + WORD],
    "a Slack address": ["https://hooks.slack" + ".com/services/T00000000/B00000000/" + WORD],
    "an API key": ["sk" + "-" + WORD, "sk" + "-proj-" + WORD + "_" + WORD, "sk" + "-ant-api03-" + WORD],
    "a signed token": [".".join(["eyJ" + "hbGciOiJIUzI1NiJ9", "eyJ" + "zdWIiOiIxMjM0NTYifQ", WORD])],
    "a signed address": ["https://storage/x?X-Goog-" + "Signature=" + HEX * 4],
    "an authorisation": ['{"Authorization": "Bearer ' + WORD + '"}', "Authorization: Basic " + WORD + "=="],
    "an address with a password": ["https://alice:" + "open-sesame@example.org/x"],
    "a private key": ["-----BEGIN " + "RSA PRIVATE KEY-----", "-----BEGIN " + "PRIVATE KEY-----"],
}  # fmt: skip
CASES = [(kind, text) for kind, texts in PLANTED.items() for text in texts]


@pytest.mark.parametrize(("kind", "secret"), CASES)
def test_each_is_found_with_its_line_and_never_shown(kind, secret):
    text = f"# one\n# two\nVALUE = '{secret}'\n# four\n"
    assert f"line 3 holds {kind}" in secrets_in(text)
    with pytest.raises(LaunchError) as refusal:
        refuse_secrets({"lib/some.py": text}, own=())
    assert f"lib/some.py: line 3 holds {kind}" in str(refusal.value)
    for shown in (str(refusal.value), clean(f"HTTP 400: {secret} is wrong")):
        assert secret not in shown
        assert WORD not in shown and HEX * 2 not in shown


def test_our_own_sources_hold_no_secret():
    files = [
        *(ROOT / "lib").rglob("*.py"),
        *(ROOT / "kernels").rglob("*.py"),
        *(ROOT / "launch").rglob("*.py"),
    ]
    assert [str(path) for path in files if secrets_in(path.read_text())] == []


@pytest.mark.parametrize(
    "text",
    [
        "task-list-of-things-to-do-for-2026-and-after",
        "key = '%s'" % ("0" * 40),
        "sha256 " + HEX * 4,
        "https://kaggle.com/me?a=b",
        "f'https://{user}:{password}@host'",
        "hf_hub_download_and_other_functions_of_it",
        "risk-score-of-the-2nd-fold-of-five",
    ],
)
def test_what_only_resembles_one_is_left_alone(text):
    assert secrets_in(text) == []


@pytest.mark.parametrize(
    "text", ["eyJ", "://a:", "sk-a-", "https://a", "x/y", "key = ", "-----BEGIN A ", "eyJaaaaaaaa."]
)
def test_no_text_takes_minutes_to_scan(text):
    """Each of these took minutes once, or would with a careless pattern; here with 200 kB of it."""
    long = text * (200_000 // len(text))
    secrets_in(long)
    clean(long)


@pytest.mark.parametrize("name", ["lib/evaluation/metrics.py", "kernels/train.py"])
def test_a_build_with_a_secret_is_refused_and_leaves_nothing(name, tmp_path):
    root = copied_tree(tmp_path / "root")
    with (root / name).open("a") as stream:
        stream.write(f"\nTOKEN = 'KGAT_{HEX * 2}'\n")
    line = (root / name).read_text().count("\n")
    with pytest.raises(LaunchError) as refusal:
        build([load_experiment("smoke")], out=tmp_path / "dist", owner="me", root=root)
    assert f"{name}: line {line} holds a Kaggle token" in str(refusal.value)
    assert HEX not in str(refusal.value)
    assert not (tmp_path / "dist").exists()


@pytest.mark.parametrize("name", ["kernel-metadata.json", "dataset-metadata.json"])
def test_a_secret_in_the_metadata_is_refused(name, tmp_path):
    root = copied_tree(tmp_path / "root")
    metadata = json.loads((root / name).read_text())
    (root / name).write_text(json.dumps({**metadata, "description": "KGAT_" + HEX * 2}))
    with pytest.raises(LaunchError, match="holds a Kaggle token"):
        build([load_experiment("smoke")], out=tmp_path / "dist", owner="me", root=root)
    assert not (tmp_path / "dist").exists()


def test_a_secret_in_an_option_of_the_user_is_refused(tmp_path):
    source = read_checkout(owner="me")
    kernel = plan_kernels([load_experiment("smoke", [f"slide_map=KGAT_{HEX * 2}.csv"])])[1]
    with pytest.raises(LaunchError, match="the parameters of hcd-.*holds a Kaggle token"):
        source.write_kernel(kernel, tmp_path / "kernel")
    assert not (tmp_path / "kernel").exists()


def test_the_users_own_credentials_are_refused_whatever_they_look_like(tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLE_API_TOKEN", "of-a-kind-nobody-knew-in-2026")
    root = copied_tree(tmp_path / "root")
    (root / "lib" / "odd.py").write_text("WORD = 'of-a-kind-nobody-knew-in-2026'\n")
    with pytest.raises(LaunchError, match="lib/odd.py: line 1 holds a credential of yours"):
        build([load_experiment("smoke")], out=tmp_path / "dist", owner="me", root=root)


def test_credentials_are_read_from_environment_and_files(tmp_path):
    (tmp_path / ".kaggle").mkdir()
    (tmp_path / ".kaggle" / "access_token").write_text("file-token-1234567\n")
    (tmp_path / ".kaggle" / "kaggle.json").write_text(
        json.dumps({"username": "alice-the-user-12345", "key": "k" * 32})
    )
    (tmp_path / ".kaggle" / "credentials.json").write_text("[" * 100_000)
    found = own_secrets({"HF_TOKEN": "hugging-1234567890", "KAGGLE_KEY": "short"}, tmp_path)
    assert set(found) == {"file-token-1234567", "k" * 32, "hugging-1234567890"}


class UnusedClient:
    """A client that must not be called."""

    def __getattr__(self, name):
        raise AssertionError(f"{name} was called")


def test_what_was_changed_after_the_build_is_refused_before_it_is_sent(tmp_path):
    made = build([load_experiment("smoke")], out=tmp_path / "dist", owner="me")
    kaggle = Kaggle(UnusedClient(), "me", _secrets=("the-token-in-use-123",))
    kernel = made.script(made.kernels[0])
    kernel.write_text(kernel.read_text() + "\n# the-token-in-use-123\n")
    with pytest.raises(RefusedError, match="holds a credential of yours") as refusal:
        kaggle.push(kernel.parent, limit=60)
    assert "the-token-in-use-123" not in str(refusal.value)
    (made.out / "dataset" / "lib" / "notes.txt").write_text("-----BEGIN " + "PRIVATE KEY-----\n")
    with pytest.raises(RefusedError, match=r"lib/notes.txt: line 1 holds a private key"):
        kaggle.upload_dataset(made.out / "dataset", notes="", new=True, temporary=tmp_path / "uploads")


def test_check_uses_the_same_patterns_as_build(tmp_path):
    made = build([load_experiment("smoke")], out=tmp_path / "dist", owner="me")
    secret = CASES[0][1]
    (made.out / "dataset" / "BUNDLE_ID").write_text(secret)
    problems = check(made.out).problems
    assert [problem for problem in problems if "BUNDLE_ID: line 1 holds a Kaggle token" in problem]
    assert secret not in "".join(problems)
