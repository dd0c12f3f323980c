"""`mconv launch image`: the Containerfile of a cluster, and the script that builds, pushes and imports its image."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mconv.cli.launch import ClusterFile, Overwrite, Set, cluster_values

Render = Annotated[Path | None, Parameter(help="Write the files to this folder; they are printed if not given.")]


def image(*, cluster: ClusterFile = None, render: Render = None, set_: Set = None, overwrite: Overwrite = False) -> None:
    """Make the image that a cluster's containers start from: its Containerfile and image.sh."""
    from mconv.train.clusters import files, images, read

    rendered = images.render(read.make(cluster_values(cluster, set_)))
    if render is None:
        print("\n".join(f"==> {name}\n{text}" for name, text in rendered.files.items()), end="")
    else:
        files.write(render.absolute(), rendered.files, overwrite=overwrite)
        print(f"wrote {render}: {', '.join(rendered.files)}")
    print("\n".join(rendered.notes))
