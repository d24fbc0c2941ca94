#!/bin/sh
# Makes .venv and installs into it what one purpose needs. Called by the Makefile, from the repository root.
#
#   sh .ci/env.sh demo     the package and what the examples draw with
#   sh .ci/env.sh test     that, the test tools, and torch-cluster (compiled, hence a C++ compiler)
#   sh .ci/env.sh docs     the package and what builds the pages
#   sh .ci/env.sh check    nothing; says whether $PYTHON and the .venv that is there go together
#
# What was installed for a purpose is marked by .venv/.<purpose>, which make compares with the pins.
set -eu

purpose=$1
python=${PYTHON:-python3}
venv_python=.venv/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

die() {
    printf '\nerror: %s\n' "$*" >&2
    exit 1
}

say() {
    printf '== %s\n' "$*"
}

version_of() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

check_python() {
    command -v "$python" >/dev/null ||
        die "$python was not found. Install Python 3.10 to 3.13, or name one: make PYTHON=/path/to/python3.12"
    version=$(version_of "$python") || die "$python does not run. Name another: make PYTHON=/path/to/python3.12"
    case $version in
    3.10 | 3.11 | 3.12 | 3.13) ;;
    *) die "$python is Python $version; 3.10 to 3.13 are supported. Name another: make PYTHON=/path/to/python3.12" ;;
    esac
    # Debian and Ubuntu have ensurepip, without which venv makes no usable environment, in a package of its own.
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        die "$python cannot make virtual environments. On Debian or Ubuntu: apt install python$version-venv"
}

check_venv() {
    [ -e $venv_python ] || return 0
    [ "$(version_of $venv_python)" = "$version" ] ||
        die ".venv has Python $(version_of $venv_python), but $python is $version. Remove it first: make clean"
}

check_compiler() {
    command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null ||
        die "no C++ compiler was found, and torch-cluster is compiled here. On Debian or Ubuntu: apt install g++"
    include=$("$1" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [ -e "$include/Python.h" ] ||
        die "Python.h was not found, and torch-cluster is compiled here. On Debian or Ubuntu: apt install python$2-dev"
}

# Every install sees the pins, so that none takes the newest torch.
install() {
    $venv_python -m pip install --constraint constraints.txt "$@" ||
        die "pip could not install: $* (its own message is above)"
}

# Compiled against the torch that is there, so again whenever the pin of either moves. pip would keep the wheel under
# torch-cluster's version alone and hand it out for any torch: hence a cache folder for each torch.
install_torch_cluster() {
    torch=$($venv_python -c 'import torch; print(torch.__version__)')
    wanted="$(grep '^torch-cluster==' constraints.txt) torch==$torch"
    [ "$(cat .venv/.torch-cluster 2>/dev/null)" = "$wanted" ] && return 0
    say "torch-cluster: compiling for torch $torch (five to ten minutes on two cores, the first time)"
    if cache=$($venv_python -m pip cache dir 2>/dev/null); then
        cache=--cache-dir=$cache/torch-$torch
    else
        cache=--no-cache-dir
    fi
    printf '[build_ext]\nparallel = 2\n' >.venv/build.cfg
    (
        # Nobody debugs it, and its debug symbols take long to write.
        export CFLAGS="${CFLAGS:-} -g0" DIST_EXTRA_CONFIG="$PWD/.venv/build.cfg"
        install --quiet --no-build-isolation --no-deps --force-reinstall "$cache" torch-cluster
    )
    $venv_python -c 'import torch_cluster' || die "torch-cluster was built but cannot be imported (see above)"
    printf '%s\n' "$wanted" >.venv/.torch-cluster
}

[ "$purpose" = check ] && {
    check_python
    check_venv
    exit 0
}

case $purpose in
demo) extras=examples ;;
test) extras=cli,examples,test ;;
docs) extras=docs ;;
*) die "unknown purpose: $purpose" ;;
esac

if $venv_python -m pip --version >/dev/null 2>&1; then
    version=$(version_of $venv_python)
else
    check_python
fi
[ "$purpose" != test ] || check_compiler "$([ -e $venv_python ] && echo $venv_python || echo "$python")" "$version"
if ! $venv_python -m pip --version >/dev/null 2>&1; then
    say "making .venv with Python $version"
    "$python" -m venv --clear .venv || die "$python -m venv failed (its own message is above)"
fi

say "installing what \`make $purpose\` needs into .venv"
install --quiet --upgrade pip setuptools wheel
install --quiet --progress-bar auto torch
install --quiet --build-constraint constraints.txt --editable ".[$extras]"
[ "$purpose" != test ] || install_torch_cluster
touch ".venv/.$purpose"
[ "$purpose" != test ] || touch .venv/.demo # the test environment has all that the demo needs
