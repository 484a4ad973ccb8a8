"""What the subcommands of `mesh` do, one module each; options are read in `mesh.cli`."""
