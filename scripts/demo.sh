#!/usr/bin/env bash
# The main job on the shipped store; `make demo` runs it. Writes only into demo/, from scratch.
set -euo pipefail
cd "$(dirname "$0")/.."
unset CHGDB_STORE CHGDB_MODELS

say() { printf '\n# %s\n' "$*"; }

run() {
    printf '$ chgdb'
    local word
    for word in "$@"; do
        case $word in
            *[!A-Za-z0-9_./,:=%-]*) printf " '%s'" "$word" ;;
            *) printf ' %s' "$word" ;;
        esac
    done
    printf '\n'
    chgdb "$@" 2>&1
}

rm -rf demo
mkdir demo

say "What is in the shipped store"
run info --store store

say "Stiff oxides with a gap"
run search --store store --elements O --where "bulk_modulus > 150 AND NOT is_metal"

say "A CHGCAR decoded from the store, and the error stored with it"
run get mp-149 --store store --decode -o demo/mp-149.CHGCAR.vasp

say "Its error, measured again against the density it was made from"
run compare demo/mp-149.CHGCAR.vasp examples/mp-149.CHGCAR.gz

say "A store of our own, and a new CHGCAR in it"
run export demo/store --store store
run add examples/MgO.CHGCAR.xz --id my-mgo --tolerance 0.05% --store demo/store

say "The new record, beside the shipped one of the same crystal"
run search --store demo/store --chemsys Mg-O

say "Its properties, predicted from the file, and the densities most like it"
run predict examples/MgO.CHGCAR.xz --store demo/store
run similar examples/MgO.CHGCAR.xz -n 3 --store store

say "Done: the files are in demo/"
