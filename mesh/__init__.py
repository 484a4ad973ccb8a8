"""What a person or an application holds: the `mesh` command line and the client library."""
