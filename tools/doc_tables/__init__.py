"""The tables of the documents, filled from the committed records, so that no number in them is copied by hand.

A document holds a block for each table, whose lines are this script's:

    <!-- table: recall -->

    | …

    <!-- end -->

    python -m tools.doc_tables           # writes them
    python -m tools.doc_tables --check   # fails where one is stale

The numbers come from the records under benchmarks/records through what the report shows them with. Each has its 95%
interval, unless that is a point at three digits; a number has the decimals at which half of its
interval has two digits, or fewer.
"""
