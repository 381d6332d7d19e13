"""`mtpforge push`: a draft to the hub."""

from __future__ import annotations

import click

from mtpforge.cli import options
from mtpforge.cli.grammar import Command, Option
from mtpforge.cli.output import Ending, Screen
from mtpforge.cli.verify import draft_argument
from mtpforge.units import file_size


@click.command(
    "push",
    cls=Command,
    help="Verify a draft and send it to a repository of the hub, private unless `--public`, with a model card.",
    examples=(
        "mtpforge push out/draft ann/GLM-5.2-MTP-INT4 --dry-run",
        "mtpforge push out/draft ann/GLM-5.2-MTP-INT4 --target ./GLM-5.2-AWQ-INT4 --public",
    ),
    quiet="Only the address of the commit; nothing under --dry-run.",
    then="mtpforge diff DRAFT ORG/NAME",
)
@draft_argument
@click.argument("repo", metavar="ORG/NAME")
@options.source(help="What it was made from, for the card; default: the repository in its manifest.")
@options.target(help="What it was made for; default: the repository in its manifest.")
@click.option("--public", cls=Option, heading="Output", is_flag=True, help="Make a repository that everybody sees.")
@options.dry_run()
@click.pass_obj
def command(  # noqa: D103 -- the help text above
    screen: Screen, *, draft: str, repo: str, source: str | None, target: str | None, public: bool, dry_run: bool
) -> Ending:
    from mtpforge.publishing.calls import push

    screen.kept = lambda: "the draft is as it was; files that have arrived are not sent again"
    with screen.progress() as on_progress:
        sent = push(
            draft,
            repo,
            source=source,
            target=target,
            private=not public,
            dry_run=dry_run,
            offline=screen.offline,
            on_progress=on_progress,
        )
    screen.table(("file", "size"), [(name, file_size(n_bytes)) for name, n_bytes in sent.files.items()])
    seen = "private" if sent.private else "public"
    verb = "would send" if dry_run else "sent"
    screen.line(f"{verb}   {len(sent.files)} files, {file_size(sent.n_bytes)}, to {repo} ({seen} where this makes it)")
    screen.answer(sent.commit)
    kept = options.kept("source", "target")
    if dry_run:
        screen.next("mtpforge", "push", draft, repo, *kept, *(["--public"] if public else []))
    else:
        screen.next("mtpforge", "diff", draft, repo)
    return Ending({"draft": draft, "upload": sent})
