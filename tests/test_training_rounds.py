"""Rounds of self-training: which are left to do, and what each begins with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

import SimpleITK as sitk
import yaml
from small_training import CONFIG, SMALL, two_rounds

from inference.errors import UsageError
from training.__main__ import main
from training.config import Config
from training.options import parse
from training.patches.samples import Samples
from training.run import Run
from training.steps_left import steps_left

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--round", "3"], "'abdoseg' has 2 rounds, not 3"),
        (["pseudolabel", "--round", "-1"], "'abdoseg' has 2 rounds, not -1"),
        (["--round", "0"], "--round is for one step alone"),
        (["--checkpoint", "it.pt"], "--checkpoint is for the steps"),
        (["train", "--round", "1"], "no pseudo-labels for this round (no fold, run_round1); run"),
        (["pseudolabel", "--round", "2"], "run_round1/checkpoint.pt: no checkpoint"),
    ],
)
def test_a_round_that_cannot_be_made_is_one_line(
    prepared: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    (tmp_path / "data" / "unlabelled" / "kept").mkdir(parents=True)
    content = yaml.safe_load(CONFIG.read_text())
    content.update({k: list(v) if isinstance(v, tuple) else v for k, v in SMALL.items()})
    content["self_training"] = {"rounds": 2, "iterations": 5, "learning_rate": 0.001}
    config = tmp_path / "rounds.yaml"
    config.write_text(yaml.safe_dump(content))
    work = tmp_path / "work"
    work.mkdir()
    (work / "prepared").symlink_to(prepared)
    given = ["--config", str(config), "--data", str(tmp_path / "data"), "--work", str(work)]
    assert main([*arguments, *given]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1


def test_every_round_draws_patches_of_its_own(prepared: Path, tmp_path: Path) -> None:
    """Folds are drawn with the seed too: what is held out stays the same."""
    config, data = two_rounds(tmp_path / "data")
    for name in "abcdef":
        (data / "cases" / name).mkdir(parents=True)
        for file in ("ct.nii.gz", "labels.nii.gz"):
            sitk.WriteImage(sitk.Image(4, 4, 4, sitk.sitkInt16), str(data / "cases" / name / file))
    content = yaml.safe_load(CONFIG.read_text())
    content.update(self_training=dict(config.self_training), empty=[], holdout=[])
    path = tmp_path / "rounds.yaml"
    path.write_text(yaml.safe_dump(content))
    given = ["--config", str(path), "--data", str(data), "--work", str(tmp_path / "work")]
    bent = {"augmentation": {"warp": {"strength": 0.4}}}
    drawn, held_out = set(), set()
    for number in range(3):
        run = Run(Config.load(path), parse(["prepare", *given, "--fold=1", f"--round={number}"]))
        held_out.add(run.holdout)
        samples = Samples(prepared, replace(run.config, **{**SMALL, **bent}))
        drawn.add(tuple(float(samples[index].image.sum()) for index in range(4)))
    assert len(drawn) == 3 and len(held_out) == 1


def test_the_largest_seed_has_rounds_too() -> None:
    rounds = {"rounds": 2, "iterations": 5, "learning_rate": 0.001}
    config = replace(Config.load(CONFIG), seed=2**32 - 1, self_training=rounds)
    seeds = {config.in_round(number).seed for number in range(3)}
    assert len(seeds) == 3 and all(0 <= seed < 2**32 for seed in seeds)


def test_the_whole_command_goes_on_with_the_round_that_was_begun(tmp_path: Path) -> None:
    """Rounds of another run, or of another fold, are others."""
    config, data = two_rounds(tmp_path / "data")

    def steps(*more: str) -> str:
        given = ["--config", "c", "--data", str(data), "--work", str(tmp_path / "work"), *more]
        made = steps_left(config, parse(given))
        return " ".join(f"{step}{flag.removeprefix('--round=')}" for step, flag in made)

    from_the_first = (
        "prepare0 train0 pseudolabel1 prepare1 train1 pseudolabel2 prepare2 train2 export2"
    )
    assert steps() == from_the_first
    for name in ("run", "run_round1"):
        (tmp_path / "work" / name).mkdir(parents=True)
        (tmp_path / "work" / name / "checkpoint.pt").touch()
    assert steps() == "prepare1 train1 pseudolabel2 prepare2 train2 export2"
    assert steps("--run", "second") == steps("--fold", "0") == from_the_first
    (tmp_path / "annotated.json").write_text("{}")
    assert steps("--pseudolabels", str(tmp_path)) == "prepare0 train0 export0"
    with pytest.raises(ValueError, match="no pseudo-labels here"):
        steps("--pseudolabels", str(tmp_path / "mistyped"))
    for name in ("work", "."):  # the model folder is replaced as a whole
        (tmp_path / name / "plan.json").touch()
        with pytest.raises(ValueError, match="would take the place of the training"):
            steps("--out", str(tmp_path / name))
    with pytest.raises(ValueError, match=r"typo\.yaml: no such file"):
        steps("--corrections", str(tmp_path / "typo.yaml"))
    with pytest.raises(ValueError, match="no rounds that label CTs"):
        steps("--pseudolabels", str(tmp_path), "--corrections", str(tmp_path / "annotated.json"))
    (tmp_path / "failures.md").write_bytes("Fältchen".encode("latin-1"))
    with pytest.raises(ValueError, match=r"failures\.md: not UTF-8"):
        steps("--known-failures", str(tmp_path / "failures.md"))
    with pytest.raises(ValueError, match="run 'pseudolabel --round 2' first"):
        given = ["--config", "c", "--data", str(data), "--work", str(tmp_path / "work")]
        Run(config, parse(["prepare", *given, "--round", "2"])).prepare()
    for option in (["--initial"], ["--teacher", str(CONFIG)], ["--known-failures"]):
        with pytest.raises(ValueError, match="mistyped: no such file or folder"):
            steps(*option, str(tmp_path / "mistyped"))
    with pytest.raises(UsageError, match="exists and is no model folder"):
        steps("--out", str(data))
    (tmp_path / "work" / "run" / "checkpoint.pt").unlink()
    with pytest.raises(ValueError, match=r"run: has no checkpoint, but .*run_round1 has"):
        steps()
    corrections = tmp_path / "corrections.yaml"
    corrections.write_text("of_nobody:\n  - doubt: [liver]\n")
    with pytest.raises(ValueError, match="of_nobody: there is no such case"):
        steps("--corrections", str(corrections))


def test_a_round_has_the_pseudo_labels_and_weights_of_the_training_before(tmp_path: Path) -> None:
    config, data = two_rounds(tmp_path / "data")

    def of(step: str, number: int) -> Run:
        given = [step, "--config", "c", "--data", str(data), "--work", str(tmp_path)]
        return Run(config, parse([*given, "--run", "it", f"--round={number}"]))

    for number, before in ((1, "it"), (2, "it_round1")):
        weights = [tmp_path / before / "checkpoint.pt"]
        labels = tmp_path / f"it_round{number}" / "pseudolabels"
        assert of("pseudolabel", number).checkpoints == weights
        assert of("train", number).initial == weights
        begun = of("train", number).config
        assert (begun.iterations, begun.coarse_first, begun.class_weights) == (5, {}, ())
        for step in ("pseudolabel", "prepare", "train"):
            assert of(step, number).pseudolabels == labels
    assert of("export", 2).checkpoints == [tmp_path / "it_round2" / "checkpoint.pt"]
    assert of("train", 0).config.iterations == config.iterations
