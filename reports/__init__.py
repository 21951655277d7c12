"""The dashboard: one page per question, published beside asv's own page and made to work offline."""
