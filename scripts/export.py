"""Write the model of a finished run as one folder that Transformers, vLLM and other programs load.

    python scripts/export.py runs/dpo-reviews --merged exported/reviews

Base and adapter are merged, read back from disk and compared with the model that was trained; a folder whose logits
differ by more than rounding is not put in place. Knows both methods' configurations and figures, not how a merge is
done.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from dpo.config import DpoConfig
from groupwise.config import load_matching_config, to_yaml
from groupwise.errors import UserError, exit_with_user_errors, printable
from groupwise.train.run_folder import RunFolder
from grpo.config import GrpoConfig

Config = DpoConfig | GrpoConfig
DPO = "Direct Preference Optimization (DPO, [Rafailov et al. 2023](https://arxiv.org/abs/2305.18290))"
GRPO = "Group Relative Policy Optimization (GRPO, [Shao et al. 2024](https://arxiv.org/abs/2402.03300))"


def main(argv: Sequence[str]) -> None:
    """Read the command line, load the run, write the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", type=Path, help="the run's folder, such as runs/dpo-reviews")
    parser.add_argument("--merged", type=Path, required=True, metavar="DIR", help="the folder to write; must not exist")
    parser.add_argument("--license", default="unknown", help="of the model, for its card, such as apache-2.0")
    parser.add_argument("--data-license", default="unknown", help="of the training data, for the card")
    args = parser.parse_args(argv)
    target: Path = args.merged
    if target.exists() or target.is_symlink():
        raise UserError(f"{target}: exists and is left as it is; choose another folder")
    folder = RunFolder.finished(args.run)
    config = load_matching_config((DpoConfig, GrpoConfig), folder.config)
    # Torch and Transformers take seconds to import, and mistakes on the command line should not wait for them.
    from groupwise.deploy.merge import Proof, export_merged
    from groupwise.deploy.model_card import Card, model_card
    from groupwise.deploy.trained import held_out_samples, load_trained
    from groupwise.train.summary import stored_figures

    samples = held_out_samples(folder)
    trained = load_trained(folder, config)
    before, after = stored_figures(folder)

    def card(proof: Proof) -> str:
        return model_card(
            Card(
                title=target.name,
                base_model=name_of_base(config),
                method=DPO if isinstance(config, DpoConfig) else GRPO,
                tags=("groupwise", "dpo" if isinstance(config, DpoConfig) else "grpo"),
                config=to_yaml(config),
                labels=labels_of(config),
                before=before,
                after=after,
                proof=proof.lines(),
                model_licence=args.license,
                data_licence=args.data_license,
            ),
            trained.summary,
        )

    proof = export_merged(trained.policy, config, samples, target, card=card)
    for line in (*proof.lines(), f"merged model: {target}", f"model card: {target / 'README.md'}"):
        print(printable(line))


def name_of_base(config: Config) -> str:
    """The hub id that a base model came from, or what its folder is called: other people have other folders."""
    path = Path(config.model.path)
    if not path.is_dir():
        return config.model.path
    source = path / "source.json"
    if source.is_file():
        written: object = json.loads(source.read_text(encoding="utf-8"))
        repo = cast(Mapping[str, Any], written).get("repo") if isinstance(written, Mapping) else None
        if isinstance(repo, str):
            return repo
    return path.name


def labels_of(config: Config) -> Mapping[str, str]:
    """Names of the method's figures, and what its table calls them."""
    if isinstance(config, DpoConfig):
        from dpo.eval import LABELS

        return LABELS
    from grpo.eval import labels

    return labels(config)


if __name__ == "__main__":
    with exit_with_user_errors():
        main(sys.argv[1:])
