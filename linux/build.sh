#!/usr/bin/env bash
# Builds the driver for the kernel that scripts/setup.sh --linux fetched, and the program that uses it:
#   target/linux/rampart.ko, target/linux/rampartctl
# Silent where nothing is to be done; the status is 1, with a reason, where they cannot be built.
set -euo pipefail

root=$(cd -- "${BASH_SOURCE[0]%/*}/.." && pwd)
"$root/scripts/setup.sh" --driver
readonly linux=$root/target/linux
readonly tools=$linux/tools/usr out=$linux/driver

# Kbuild builds where the sources are.
mkdir -p "$out"
cp -pu "$root"/linux/{Kbuild,*.c,*.h} "$out"
headers=$(compgen -G "$tools/src/linux-headers-*-arm64")
PATH=$tools/bin:$PATH make -s -C "$headers" M="$out" KBUILD_MODPOST_WARN= modules >"$out/log" 2>&1 || {
    cat "$out/log" >&2
    exit 1
}
# Without what debuggers want, it is a fortieth of the size.
if [[ $out/rampart.ko -nt $linux/rampart.ko ]]; then
    "$tools/bin/aarch64-linux-gnu-strip" -g -o "$linux/rampart.ko.new" "$out/rampart.ko"
    mv "$linux/rampart.ko.new" "$linux/rampart.ko"
fi

readonly target=aarch64-unknown-linux-musl
CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER=rust-lld cargo build --quiet --locked --release --target $target \
    --config 'profile.release.debug="none"' --config 'profile.release.strip="symbols"' \
    --manifest-path "$root/Cargo.toml" --target-dir "$root/target" -p rampartctl
cp -pu "$root/target/$target/release/rampartctl" "$linux/rampartctl"
