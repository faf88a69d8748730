"""Parts (`--with`), one file each, and what strategies and parts are made of: heads, prompts, tuners, memories."""
