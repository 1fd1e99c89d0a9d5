"""What tables, pages and pictures of results call things."""

NOTHING = '–'  # stands where there is no number
