#!/bin/sh
# The tests with the oldest versions that pyproject.toml promises, in an environment of their own, build/oldest:
#
#   sh .ci/oldest.sh -k remul    arguments go to pytest
#
# PYTHON names a Python 3.10 to 3.12, the ones that the oldest versions have wheels for. No lint and no types, which are judged
# with the pinned versions, and no torch-cluster: the tests that need it are skipped.
set -eu
cd "$(dirname "$0")/.."
venv=build/oldest
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

[ -e $venv/bin/python ] || "${PYTHON:-python3}" -m venv $venv

# One file of pins: those of constraints.txt, but for what .ci/constraints-oldest.txt names.
names=$(sed -n 's/^\([a-z0-9-]*\)==.*/\1/p' .ci/constraints-oldest.txt | paste -s -d '|' -)
grep -v -E "^($names)==" constraints.txt | cat - .ci/constraints-oldest.txt >$venv/constraints.txt

install() {
    $venv/bin/python -m pip install --quiet --constraint $venv/constraints.txt "$@"
}
install --upgrade pip
install --build-constraint constraints.txt --editable '.[cli,examples,test]'

OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} exec $venv/bin/python -m pytest "$@"
