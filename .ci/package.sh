#!/bin/sh
# The package as users get it: the sdist and the wheel are built and checked, and the wheel is tried in an empty folder, in
# environments that have what it depends on, with no extra installed and with each extra missing:
#
#   sh .ci/package.sh        after `make test` or .ci/env.sh test, whose .venv lends the dependencies; writes dist/
#
# Nothing of torch's size is downloaded: an environment's packages are links to those of .venv, without the extra's.
set -eu
cd "$(dirname "$0")/.."
root=$PWD
python=$root/.venv/bin/python
[ -x "$python" ] || python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 OMP_NUM_THREADS=1
unset PYTHONPATH PYTHONDONTWRITEBYTECODE

say() {
    printf '== %s\n' "$*"
}

say "building"
"$python" -m venv "$work/tools"
"$work/tools/bin/python" -m pip install --quiet build twine 2>/dev/null
rm -rf dist
PIP_BUILD_CONSTRAINT=$root/constraints.txt "$work/tools/bin/python" -m build --outdir dist . >"$work/build.log" 2>&1 || {
    cat "$work/build.log"
    exit 1
}
"$work/tools/bin/python" -m twine check --strict dist/*
site=$("$python" -c 'import torch, pathlib; print(pathlib.Path(torch.__file__).parents[1])')

# environment NAME PACKAGES: a venv with the wheel, and with everything of $site but what begins with one of the packages.
environment() {
    "$python" -m venv --without-pip "$work/$1"
    packages=$(echo "$work/$1"/lib/python*/site-packages)
    for entry in "$site"/*; do
        name=$(basename "$entry")
        for left_out in lightning_equiv _editable_impl_lightning_equiv __pycache__ $2; do
            case $name in "$left_out" | "$left_out".* | "$left_out"-*) continue 2 ;; esac
        done
        ln -s "$entry" "$packages/$name"
    done
    "$python" -m zipfile -e "$root"/dist/*.whl "$packages"
}

graph="torch_cluster torch_geometric"
examples="matplotlib mpl_toolkits rich sklearn scikit_learn trimesh"
molecules="ase tblite"
cli="jsonargparse"
tests="pytest _pytest hypothesis xdist mypy mypyc distributed"

mkdir "$work/empty"
cd "$work/empty"
for extra in none graph examples molecules cli; do
    case $extra in
    none) environment none "$graph $examples $molecules $cli $tests" ;;
    *) eval "environment $extra \"\$$extra\"" ;;
    esac
    say "import, ${extra} $([ $extra = none ] && echo "of the extras is there" || echo "is missing")"
    "$work/$extra/bin/python" -c "
import lightning_equiv, lightning_equiv.datasets
assert lightning_equiv.__file__.startswith('$work'), lightning_equiv.__file__
for name in '$(eval "echo \${$extra-$cli}")'.split():
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f'{name} was to be missing')"
done

say "the README's script, with no extra"
sed -n '/^```python$/,/^```$/p' "$root/README.md" | sed '1d;/^```$/,$d' >readme.py
if grep -q your_module readme.py; then # it is not whole; this is, and the README names it
    cp "$root/examples/quickstart.py" readme.py
fi
"$work/none/bin/python" readme.py --fast-dev-run >printed.txt 2>errors.txt || {
    cat errors.txt
    exit 1
}
grep -a "error" printed.txt | tail -n 3

say "the command line"
environment all ""
"$work/all/bin/python" -m lightning_equiv fit --help >/dev/null
if "$work/cli/bin/python" -m lightning_equiv fit --help >cli.txt 2>&1; then exit 1; fi
grep -q "pip install 'lightning_equiv\[cli\]'" cli.txt

say "the doctests"
"$work/all/bin/python" -m pytest -q -p no:cacheprovider --doctest-modules --import-mode=importlib \
    -o doctest_optionflags="ELLIPSIS NORMALIZE_WHITESPACE" --pyargs lightning_equiv 2>&1 | tail -n 3 | tee doctests.txt
grep -q passed doctests.txt && ! grep -qE "failed|error" doctests.txt
say "dist: $(cd "$root/dist" && echo *)"
