# To be sourced. Bugs that are put into a copy of the tree, one at a time.
#   planted_tree PATCH      a fresh copy with it in $copy/tree; false and
#                           $missed + 1 when the patch no longer applies
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
found=0 missed=0
planted_names() { # planted_names DIR: of all its patches
    local patch
    for patch in "$1"/*.patch; do basename "$patch" .patch; done
}
# With the objects, so that a copy only builds what its patch touches.
planted_tree() {
    rm -rf "$copy"/tree
    mkdir -p "$copy"/tree/build
    cp -a Makefile base raft rsm shardctrler shardkv transport fs mount cmd tests "$copy"/tree
    cp -a build/release "$copy"/tree/build
    patch -d "$copy"/tree -p1 -s --no-backup-if-mismatch <"$1" && return
    echo "$(basename "$1" .patch): the patch no longer applies"
    missed=$((missed + 1))
    return 1
}
planted_end() { # the last line, and the script's exit status
    echo "$found found, $missed not found"
    [ $missed -eq 0 ]
}
