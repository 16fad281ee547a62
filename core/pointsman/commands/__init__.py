"""What the command line does, one module a group of commands; `pointsman.cli` only parses."""
