# What a developer runs. Every target works in a checkout with `pip install -e '.[dev,load]'`;
# luacheck (Debian: lua-check) and stylua (npm: @johnnymorganz/stylua-bin) are needed for lua/.

PYTHON ?= python
# Real order flow is not part of the repository: the scripts look for it where ORDERBOOK_DATA says,
# else in ../shared/data.
GOOG = GOOG_2012-06-21_34200000_57600000

.PHONY: check static format-check lint types luacheck stylua test test-long fuzz campaign victim fix bench bench-quick instructions challenge lobster demo clean

check: static test

static: format-check lint types luacheck stylua

format-check:
	$(PYTHON) -m ruff format --check .

lint:
	$(PYTHON) -m ruff check .

types:
	$(PYTHON) -m mypy

luacheck:
	luacheck --quiet lua

stylua:
	stylua --check lua

test:
	$(PYTHON) -m pytest -n 3

# The same tests on every engine throughout, with many more generated command sequences.
test-long:
	ORDERBOOK_TEST_ENGINES=valkey,redis7,redis8,fakeredis HYPOTHESIS_PROFILE=long $(PYTHON) -m pytest -n 3

# Values where they do not belong: as many calls as asked for, with a line of progress.
CALLS ?= 100000
fuzz:
	ORDERBOOK_FUZZ_CALLS=$(CALLS) $(PYTHON) -m pytest -q -s tests/test_value_fuzz.py

# Kills of servers and hosts under load, and the like: 5 is a few minutes, 100 a full campaign.
ROUNDS ?= 5
SEED ?= 1
campaign:
	PYTHONPATH=.:scripts:tests $(PYTHON) -m campaign --rounds $(ROUNDS) --seed $(SEED)

# What one client waits beside others that want everything for themselves.
victim:
	$(PYTHON) scripts/victim.py

fix:
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .
	stylua lua

bench:
	$(PYTHON) scripts/bench.py all

# The same, small and short: to see that everything runs.
bench-quick:
	$(PYTHON) scripts/bench.py all --quick

# Machine instructions of the server, counted by valgrind, against those in scripts/instructions.json.
instructions:
	$(PYTHON) scripts/instructions.py --check

challenge:
	$(PYTHON) scripts/challenge.py normal.bin.xz

lobster:
	$(PYTHON) scripts/lobster.py --script GOOG_10.script.jsonl.xz \
	  --orderbook $(GOOG)_orderbook_10.csv.xz --levels 10 --json

demo:
	$(PYTHON) -m orderbook demo

clean:
	rm -rf build dist reports .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
