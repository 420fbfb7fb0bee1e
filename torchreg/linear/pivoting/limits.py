"""Where block pivoting draws its lines, for one problem on a tableau and for several in lockstep."""

SPARE = 3  # exchanges that need not lessen the violations, before only the worst quarter changes
ASTRAY = 8  # times as many violations as before (and at least its square): exchanges lead nowhere
SLACK = 1e-12  # of a correlation beyond l1: less is rounding, not a violation
ROUNDING = 1e-14  # of a correlation, relative to the largest
DEPENDENT = 1e-10  # of its square norm is left of a column, after the active ones: it is their combination
