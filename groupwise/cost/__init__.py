"""How long a step takes and what it sends, from shapes alone; the constants of a machine are fitted to measurements."""
