"""The command line. It parses and prints; what is done stands in `pointsman.commands` and the rooms.

Exit status: 0 ok, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from pointsman.commands import strategies as strategy_commands
from pointsman.commands.database import db
from pointsman.commands.encoders import distil, encoder
from pointsman.commands.strategies import strategies
from pointsman.errors import PointsmanError
from pointsman.settings import environment

__all__ = ["cli", "main"]

PATH = click.Path(path_type=Path)
data_dir_option = click.option("--data-dir", type=PATH, help="Directory for keys, database and verified bundles.")
host_option = click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
port_option = click.option("--port", type=click.IntRange(1, 65_535), default=4000, show_default=True, help="Port to listen on.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="pointsman", prog_name="pointsman")
def cli() -> None:
    """Pointsman: the LiteLLM gateway that routes by learned strategies.

    Start with `pointsman up`: a whole gateway on this machine, its database included. In production use `pointsman serve`
    with a configuration that `pointsman check` accepts and a DATABASE_URL.
    """


@cli.command()
@click.option("--config", type=PATH, help="Your YAML file. It is read, never written.")
@click.option("--profile", help="A built-in configuration instead: local, ha, aws, gpu, airgapped. [default: local]")
@host_option
@port_option
@data_dir_option
def up(config: Path | None, profile: str | None, host: str, port: int, data_dir: Path | None) -> None:
    """Run a whole gateway here: embedded Postgres, keys, admin UI.

    The master key is made on the first run and kept in DATA-DIR/master_key (mode 0600), unless LITELLM_MASTER_KEY is set.
    A `.env` file in the working directory is read. Ctrl-C stops everything; the data stay.
    """
    from pointsman.commands import run

    if config is not None and profile is not None:
        raise click.UsageError("--config and --profile exclude each other")
    run.up(
        config=config,
        profile=profile,
        host=host,
        port=port,
        data_dir=data_dir,
        env=environment(dotenv=Path.cwd() / ".env"),
    )


@cli.command()
@click.option("--config", type=PATH, required=True, help="Your YAML file. It is read, never written.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Worker processes.")
@click.option(
    "--database-wait",
    type=click.FloatRange(0, 3600),
    default=30.0,
    show_default=True,
    help="Seconds to wait at the start for a database that cannot be reached yet.",
)
@click.option(
    "--no-migrate",
    is_flag=True,
    help="Leave the schema alone, and refuse to start where `pointsman db migrate` has work to do.",
)
@host_option
@port_option
@data_dir_option
def serve(
    config: Path, workers: int, database_wait: float, no_migrate: bool, host: str, port: int, data_dir: Path | None
) -> None:
    """Run a production instance: nothing embedded.

    DATABASE_URL, LITELLM_MASTER_KEY and LITELLM_SALT_KEY come from the environment. SIGTERM drains: readiness answers 503,
    requests in flight finish within `pointsman.shutdown.grace` seconds, then they are cut.
    """
    from pointsman.commands import run

    run.serve(
        config=config,
        workers=workers,
        host=host,
        port=port,
        data_dir=data_dir,
        database_wait=database_wait,
        migrate=not no_migrate,
        env=environment(),
    )


@cli.command()
@click.option("--output", type=PATH, default=Path("pointsman.yaml"), show_default=True, help="File to write.")
@click.option("--force", is_flag=True, help="Overwrite the file.")
def init(output: Path, force: bool) -> None:
    """Write a configuration for the provider keys and local servers (Ollama, llama.cpp, vLLM) found here."""
    from pointsman.commands import check as commands

    click.echo(commands.init(output, environment(), force=force))


@cli.command()
@click.argument("file", type=PATH)
def check(file: Path) -> None:
    """Check a configuration: every problem at once, with line, key and mend."""
    from pointsman.commands import check as commands

    problems = commands.check(file, environment())
    for problem in problems:
        click.echo(str(problem), err=True)
    if any(problem.severity == "error" for problem in problems):
        sys.exit(1)
    click.echo(f"{file}: ok")


@cli.command()
@data_dir_option
def doctor(data_dir: Path | None) -> None:
    """Look at this machine: set-up, disk, data directory, database."""
    from pointsman.commands import check as commands

    failed = False
    for finding in commands.doctor(environment(), data_dir):
        click.echo(f"{'ok  ' if finding.ok else 'FAIL'} {finding.name}: {finding.detail}")
        if not finding.ok:
            failed = True
            click.echo(f"     -> {finding.mend}")
    if failed:
        sys.exit(1)


cli.add_command(db)


@cli.group()
def mlops() -> None:
    """Train strategies and publish them."""


@mlops.command("train")
@click.option("--strategy", required=True, help="Kind of strategy: knn, linear, ...")
@click.option("--data", type=PATH, help="JSON lines (.jsonl, .jsonl.gz): query and a score for each model.")
@click.option("--out", type=PATH, required=True, help="Directory for the bundle and its card.")
@click.option("--name", help="Name of the strategy that the bundle is for.  [default: llmrouter-KIND; KIND for ours]")
@click.option("--encoder", help="tfidf, hashing, none, or a file: an encoder's, or a bundle's.  [default: the kind's]")
@click.option(
    "--neighbours", type=click.IntRange(1, 1000), help="k of kNN; the same as --set k=.  [default: by cross-validation]"
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of the trainer; may be given often.")
@click.option("--holdout", type=click.FloatRange(0.01, 0.5), default=0.2, show_default=True, help="Share of rows that judge.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of every random choice.")
@click.option("--llm-data", type=PATH, help="LLMRouter's llm_data JSON with prices; then the evaluation tells costs.")
def mlops_train(
    strategy: str,
    data: Path | None,
    out: Path,
    name: str | None,
    encoder: str | None,
    neighbours: int | None,
    settings: tuple[str, ...],
    holdout: float,
    seed: int,
    llm_data: Path | None,
) -> None:
    """Train a strategy; write a bundle and a card with its held-out evaluation beside the baselines."""
    from pointsman.commands.training import train_strategy

    bundle = train_strategy(
        strategy,
        data,
        out,
        name=name,
        encoder=encoder,
        settings=(*settings, *([f"k={neighbours}"] if neighbours is not None else [])),
        holdout=holdout,
        seed=seed,
        llm_data=llm_data,
        env=environment(),
        progress=lambda line: click.echo(line, err=True),
    )
    click.echo(str(bundle))


@strategies.command("import")
@click.option("--kind", required=True, help="Kind of strategy: knn, svm, mlp, ...")
@click.option("--llmrouter-config", "config", type=PATH, required=True, help="LLMRouter's YAML file that it was trained with.")
@click.option("--data", type=PATH, required=True, help="Held-out queries to compare on: JSON lines with `query`.")
@click.option("--encoder", default="none", help="What made LLMRouter's embeddings: an encoder's file, a bundle, or hashing:N.")
@click.option("--out", type=PATH, required=True, help="Directory for the bundle.")
@click.option("--name", help="Name of the strategy that the bundle is for.  [default: llmrouter-KIND]")
@click.option("--trust-artifact", is_flag=True, help="Allow the code inside LLMRouter's artifact to be executed.")
def strategies_import(
    kind: str, config: Path, data: Path, encoder: str, out: Path, name: str | None, trust_artifact: bool
) -> None:
    """Turn a router that LLMRouter trained into a bundle.

    Runs in the training environment, where LLMRouter is installed. Its artifacts are pickles, which execute code when they are
    read: give --trust-artifact only for one that you trained yourself. The bundle is compared with LLMRouter on the held-out
    queries; if one choice differs, nothing is written.
    """
    from pointsman.commands.training import import_strategy

    bundle = import_strategy(
        kind,
        config,
        data,
        out,
        encoder=encoder,
        name=name,
        trust_artifact=trust_artifact,
        progress=lambda line: click.echo(line, err=True),
    )
    click.echo(str(bundle))


cli.add_command(strategies)
strategies.add_command(encoder)
mlops.add_command(distil)
for command in (strategy_commands.publish, strategy_commands.keygen):
    mlops.add_command(command)


def main(arguments: list[str] | None = None) -> Any:
    """Entry point: run, print our errors, set the exit status."""
    try:
        cli.main(args=arguments, prog_name="pointsman")
    except PointsmanError as error:
        click.echo(f"pointsman: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
