"""The library beneath the scripts: one room per purpose. Nobody has to read it to understand the scripts."""
