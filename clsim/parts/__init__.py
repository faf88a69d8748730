"""Parts (`--with`), one file each, and building blocks of strategies and parts: heads, prompts, tuners, memories."""
