# Sourced by scripts that fetch what they need once, into the cache folder, and say what they leave out.
cache=${EPIPHYTE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/epiphyte}

# What makes the library of a phone small, beside the profile `phone`: pieces of code that are alike become one.
phone_rustflags="-C llvm-args=--enable-machine-outliner=always"

# left_out WHAT REASON: said at once, and again at the end by .ci/summary.
left_out() {
    echo "Left out: $1: $2" >&2
    echo "$1: $2" >>"${EPIPHYTE_TEST_SKIPPED:-/dev/null}"
    exit 0
}

# debian SUITE[:ARCHITECTURE] FOLDER PACKAGE...: .ci/debian, or the end of this script.
debian() {
    local reason
    reason=$(.ci/debian "$@") || left_out "$0" "${reason##*$'\n'}"
}

say() { echo "$*" >&2; }

# The linker that rustup brings along: it links for any target.
lld() { echo "$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/host: //p')/bin/gcc-ld/$1"; }

# Debian for arm64, not installed: to link with, and to run under qemu-user.
arm64() {
    debian trixie:arm64 "$cache/arm64" libc6-dev libgcc-14-dev libunwind-19-dev mesa-vulkan-drivers libvulkan1
    arm64_root=$cache/arm64/root
}
