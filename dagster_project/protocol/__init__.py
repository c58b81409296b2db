"""The protocol of a debate, below dagster_project.debate, which tells it: its words, its texts, its strategies. Pure."""
