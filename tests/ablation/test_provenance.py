"""The record of a run: the commit that the function's file stands at, read without running anything; no secrets."""

import os
import shutil
import subprocess

import pytest
from ablations import ablation, row

from torchreg.ablation.ledger.provenance import git_state, run_record, without_secrets
from torchreg.report import write_report

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def _git(folder, *arguments):
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """A repository with one committed file, train.py."""
    folder = tmp_path / "repository"
    folder.mkdir()
    _git(folder, "init", "-q")
    (folder / "train.py").write_text("def run(penalty): ...\n")
    _git(folder, "add", ".")
    _git(folder, "commit", "-qm", "first")
    return folder


@needs_git
def test_the_commit_of_the_functions_file_is_recorded(repository):
    found = git_state(repository / "train.py")
    assert found == {"commit": _git(repository, "rev-parse", "HEAD"), "dirty": False, "tracked": True}
    (repository / "train.py").write_text("changed\n")
    assert git_state(repository / "train.py")["dirty"]


@needs_git
def test_a_file_that_is_not_in_the_commit_is_said_not_to_be(repository):
    (repository / "other.py").write_text("")
    assert git_state(repository / "other.py")["tracked"] is False
    _git(repository, "add", "other.py")
    found = git_state(repository / "other.py")
    assert found["tracked"] is False, "in the index alone"
    assert found["dirty"]


@pytest.fixture
def program(tmp_path):
    """A program that leaves a file, witness, where it has run."""
    file = tmp_path / "program"
    file.write_text(f"#!/bin/sh\necho $0 >> {tmp_path / 'witness'}\ncat\n")
    file.chmod(0o755)
    return file


@needs_git
@pytest.mark.parametrize("name", [b"a=b", b"a\xff", b"a\x0bb", b"a\x0cb", b"a\x1cb", "a\u2028b".encode()])
def test_no_filter_is_run_however_it_is_called(repository, program, tmp_path, name):
    with (repository / ".git" / "config").open("ab") as file:
        file.write(b'[filter "%b"]\n clean = %b\n' % (name, os.fsencode(program)))
    (repository / ".git" / "info").mkdir(exist_ok=True)
    (repository / ".git" / "info" / "attributes").write_bytes(b"* filter=%b\n" % name)
    os.utime(repository / "train.py", (1, 1))
    _git(repository, "status")
    assert (tmp_path / "witness").exists(), "plain git runs it"
    (tmp_path / "witness").unlink()
    os.utime(repository / "train.py", (2, 2))
    git_state(repository / "train.py")
    assert not (tmp_path / "witness").exists()


@needs_git
@pytest.mark.parametrize("lacking", ["HEAD", "HEAD^{tree}"])
def test_what_a_partial_clone_lacks_is_not_fetched(repository, program, tmp_path, lacking):
    program.write_text(program.read_text().replace("cat", "exit 1"))  # git waits for what it says
    settings = {
        "core.repositoryformatversion": "1", "extensions.partialClone": "origin", "remote.origin.promisor": "true",
        "remote.origin.url": repository, "remote.origin.uploadpack": program,
    }  # fmt: skip
    named = _git(repository, "rev-parse", lacking)
    for name, value in settings.items():
        _git(repository, "config", name, str(value))
    (repository / ".git" / "objects" / named[:2] / named[2:]).unlink()
    git_state(repository / "train.py")
    assert not (tmp_path / "witness").exists()
    with pytest.raises(subprocess.CalledProcessError):
        _git(repository, "cat-file", "-p", named)
    assert (tmp_path / "witness").exists(), "plain git runs it"


@needs_git
def test_a_name_that_looks_like_a_pattern_is_a_name(repository):
    name = ":(top)t*.py"
    (repository / name).write_text("")
    assert git_state(repository / name)["tracked"] is False
    _git(repository, "add", "-A")
    _git(repository, "commit", "-qm", "second")
    assert git_state(repository / name)["tracked"] is True


@needs_git
def test_nothing_that_a_repositorys_configuration_names_is_run(repository, program, tmp_path):
    witness = tmp_path / "witness"
    hooks = repository / ".git" / "own-hooks"
    hooks.mkdir()
    shutil.copy(program, hooks / "post-index-change")
    (repository / ".git" / "info").mkdir(exist_ok=True)
    (repository / ".git" / "info" / "attributes").write_text("* filter=own\n")
    for name, value in {
        "core.fsmonitor": program, "core.hooksPath": hooks, "filter.own.clean": program, "filter.own.required": "true",
    }.items():  # fmt: skip
        _git(repository, "config", name, str(value))
    os.utime(repository / "train.py", (1, 1))  # so that git compares the contents
    _git(repository, "status")
    assert witness.exists(), "plain git runs them"
    witness.unlink()
    os.utime(repository / "train.py", (2, 2))
    assert git_state(repository / "train.py")["tracked"]
    assert not witness.exists()


@needs_git
def test_variables_of_git_do_not_lead_to_another_repository(repository, tmp_path, monkeypatch):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "train.py").write_text("")
    monkeypatch.setenv("GIT_DIR", str(repository / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(repository))
    assert git_state(outside / "train.py") is None


@needs_git
def test_a_function_without_a_file_has_no_commit_wherever_it_is_called(repository, monkeypatch):
    monkeypatch.chdir(repository)
    assert run_record(None)["git"] is None
    assert run_record(str(repository / "train.py"))["git"]["tracked"]


@pytest.mark.parametrize(
    "argv",
    [
        ["--api-key", "K3Y"], ["--api-key=K3Y"], ["--hub_token", "K3Y"], ["HF_TOKEN=K3Y"], ["--password=K3Y"],
        ["https://me:K3Y@host/x.git"], ["hf_K3YK3YK3YK3YK3Y"], ["--logger", "sk-K3YK3YK3YK3YK3Y"],
    ],
)  # fmt: skip
def test_tokens_and_passwords_do_not_enter_the_record(argv, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", *argv])
    shown = run_record(None)["argv"]
    assert "K3Y" not in " ".join(shown)
    assert len(shown) == len(argv) + 1


@pytest.mark.parametrize(
    "argv",
    [["--max-tokens", "512"], ["--tokenizer=bpe"], ["--author", "me"], ["train:run", "--alphas", "0,1e-5:1e-1:9"],
     ["--token", "--lr", "0.1"], ["https://host/a@b"], ["a@b.c"]],
)  # fmt: skip
def test_the_rest_of_a_command_line_is_left_as_it_was(argv):
    assert without_secrets(argv) == argv


def test_a_report_quotes_for_a_shell_and_hides_what_an_old_ledger_recorded(tmp_path):
    pytest.importorskip("matplotlib")
    session = {
        "argv": ["train.py", "--token=K3Y", "; rm -rf ~"], "directory": "/data/$(touch x)",
        "git": {"commit": "abc; touch y", "dirty": False, "tracked": False},
    }  # fmt: skip
    path = tmp_path / "report.html"
    write_report(ablation([row(loss=0.5)], manifest={"sessions": [session]}), path)
    page = path.read_text()
    assert "K3Y" not in page
    for quoted in (
        "cd &#x27;/data/$(touch x)&#x27;",
        "git checkout &#x27;abc; touch y&#x27;",
        "&#x27;; rm -rf ~&#x27;",
    ):
        assert quoted in page
    assert "not in that commit" in page


def test_a_password_with_an_at_sign_is_hidden_whole():
    assert without_secrets(["https://me:p@ss@host/x"]) == ["https://***@host/x"]
