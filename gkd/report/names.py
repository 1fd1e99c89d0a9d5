"""What tables, pages and pictures of results call things."""

TEACHER, PLAIN_STUDENT = 'teacher', 'plain student'
NOTHING = '–'  # stands where there is no number
