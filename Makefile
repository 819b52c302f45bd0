# Two commands: `make run` starts the studio, `make test` tests all of it. Each sets up what it needs.
# (Three runs of pytest: Playwright keeps an event loop in the thread that drives a browser, and other tests need it free.)
.PHONY: run test check fmt clean
.DEFAULT_GOAL := run

run: .venv/.installed
	.venv/bin/python app.py

test: .venv/.installed-dev
	@sh scripts/chromium.sh
	.venv/bin/python -m pytest -m "not browser"
	.venv/bin/python -m pytest -m browser tests/browser
	.venv/bin/python -m pytest -m browser tests/web

check: .venv/.installed-dev
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports

fmt: .venv/.installed-dev
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

.venv/.installed: pyproject.toml constraints.txt scripts/venv.sh
	sh scripts/venv.sh .
	@touch $@

.venv/.installed-dev: pyproject.toml constraints.txt scripts/venv.sh
	sh scripts/venv.sh '.[dev]'
	@touch $@ .venv/.installed

clean:
	rm -rf .venv dist build test-artifacts .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
