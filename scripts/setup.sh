#!/usr/bin/env bash
# Gets what building and booting Rampart needs: the bare-metal Rust target, the crates of Cargo.lock and QEMU.
#
#   scripts/setup.sh            that
#   scripts/setup.sh --linux    Debian's arm64 Linux kernel and busybox instead, for a boot with Linux as the host
#   scripts/setup.sh --driver   that, the headers of that kernel, a compiler that it can be extended with, and Rust's
#                               target for Linux programs: for linux/build.sh
#   scripts/setup.sh --peer     the kernel and that target: for what scripts/bench.sh compares with
#
# Silent and quick when all is there. What it fetches goes under target/ (and into cargo's and rustup's own
# folders), never into the system, and needs no root. Safe to repeat and safe to run twice at once. Where
# something cannot be had, one sentence says what is missing and which command gets it; the exit status is 1.
#
#   RAMPART_QEMU=/path/to/qemu-system-aarch64   use this QEMU and no other
set -euo pipefail

readonly TARGET=aarch64-unknown-none-softfloat
readonly LINUX_TARGET=aarch64-unknown-linux-musl
readonly RUST_MIN=1.88
readonly QEMU_MIN=11.1
readonly DEBIAN_MIRROR=http://deb.debian.org/debian
# Debian 13 with backports: its QEMU is new enough, and it brings its own C library to older systems.
readonly QEMU_SUITES="trixie trixie-backports"
# The same suites have the newest kernel that Debian supports, in a package of its image alone (12 MB).
readonly LINUX_SUITES=$QEMU_SUITES

root=$(cd -- "${BASH_SOURCE[0]%/*}/.." && pwd)
readonly root
# Everything fetched lives here. scripts and xtask know these paths:
#   target/qemu/qemu-system-aarch64   a link to the system's QEMU, or a wrapper of the private one
#   target/rust/rustc                 only where the Rust target had to be built from Debian's library source
#   target/linux/Image, busybox, virtio_mmio.ko.xz  only with --linux; to get newer ones, remove the folder
#   target/linux/tools                only with --driver: headers in usr/src, the compiler in usr/bin
readonly state=$root/target/setup qemu=$root/target/qemu/qemu-system-aarch64 rust=$root/target/rust
readonly linux=$root/target/linux
readonly tools=$linux/tools

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}

# at_least HAVE WANT: compares dotted versions.
at_least() { [[ $(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]; }

# ---- The quick path: what was found last time, unchanged -----------------------------------------------------

# One line for the environment, then name, time and size of each file that the last full check relied on.
fingerprint() {
    printf '%s|%s|%s|%s\n' "$root" "$PATH" "${RAMPART_QEMU-}" "${RUSTUP_TOOLCHAIN-}"
    stat -Lc '%n %Y %s' -- "$@" 2>/dev/null
}

ready() {
    local files
    [[ -f $state/files && -f $state/ready ]] || return 1
    mapfile -t files <"$state/files"
    [[ $(fingerprint "${files[@]}") == "$(<"$state/ready")" ]]
}

remember() {
    printf '%s\n' "$@" >"$state/files"
    fingerprint "$@" >"$state/ready"
}

# ---- Private packages ----------------------------------------------------------------------------------------

# apt_in DIR TOOL ARG...: runs an apt tool whose every file is in DIR. With DIR/sources.list it knows only those
# sources, without it the machine's own; with DIR/architecture it is of that architecture, not the machine's.
apt_in() {
    local dir=$1 tool=$2
    shift 2
    local options=(
        -o "Dir::State=$dir/state" -o "Dir::State::lists=$dir/state/lists" -o "Dir::State::status=$dir/status"
        -o "Dir::Cache=$dir/cache" -o "Dir::Cache::archives=$dir/cache/archives"
        -o "Dir::Etc::preferences=$dir/none" -o "Dir::Etc::preferencesparts=$dir/none.d"
        -o "Dir::Log=$dir" -o Debug::NoLocking=1 -o APT::Sandbox::User=
    )
    [[ ! -f $dir/sources.list ]] ||
        options+=(-o "Dir::Etc::sourcelist=$dir/sources.list" -o Dir::Etc::sourceparts=-)
    [[ ! -f $dir/architecture ]] ||
        options+=(-o "APT::Architecture=$(<"$dir/architecture")" -o "APT::Architectures::=$(<"$dir/architecture")")
    mkdir -p "$dir/state/lists/partial" "$dir/cache/archives/partial" "$dir/none.d"
    : >"$dir/status"
    # How this machine reaches its mirrors (proxies and the like), but none of the hooks that it runs after an update.
    {
        apt-config dump | grep '^Acquire::' | grep -v '^Acquire::IndexTargets::'
        printf 'Dir::Etc::main "%s"; Dir::Etc::parts "%s";\n' "$dir/none" "$dir/none.d"
    } >"$dir/apt.conf"
    (cd "$dir" && APT_CONFIG=$dir/apt.conf LC_ALL=C DEBIAN_FRONTEND=noninteractive "$tool" -q "${options[@]}" "$@") \
        >>"$state/apt.log" 2>&1
}

can_unpack_packages() { command -v apt-get >/dev/null && command -v dpkg >/dev/null; }

unpack() { # unpack DIR DEB...
    local dir=$1 deb
    shift
    mkdir -p "$dir"
    for deb in "$@"; do dpkg -x "$deb" "$dir" || return 1; done
}

# machine_sources: "URI SUITE" of every source of this machine, one-line format and deb822.
machine_sources() {
    local file
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
        [[ ! -r $file ]] || sed -nE 's/^[[:space:]]*deb[[:space:]]+(\[[^]]*\][[:space:]]+)?([^[:space:]]+)[[:space:]]+([^[:space:]]+).*/\2 \3/p' "$file"
    done
    for file in /etc/apt/sources.list.d/*.sources; do
        [[ ! -r $file ]] || awk '
            function flush(  u, s, i, j) {
                if (types ~ /(^| )deb( |$)/ && tolower(enabled) != "no")
                    for (i = split(uris, u, " "); i > 0; i--)
                        for (j = split(suites, s, " "); j > 0; j--) print u[i], s[j]
                types = uris = suites = enabled = ""
            }
            /^[[:space:]]*$/ { flush(); next }
            /^#/ { next }
            /^[^[:space:]]+:/ { field = tolower($1); $1 = "" }
            field == "types:" { types = types " " $0 }
            field == "uris:" { uris = uris " " $0 }
            field == "suites:" { suites = suites " " $0 }
            field == "enabled:" { sub(/^ */, ""); enabled = $0 }
            END { flush() }' "$file"
    done
}

os_release() { (. /etc/os-release 2>/dev/null && printf '%s' "${!1-}"); }

# debian_mirrors: the Debian mirror this machine uses, if it is a Debian, then the public one.
debian_mirrors() {
    local codename
    codename=$(os_release VERSION_CODENAME)
    [[ -z $codename ]] || machine_sources |
        awk -v suite="$codename" '$2 == suite && $1 ~ /debian/ { sub(/\/+$/, "", $1); print $1; exit }'
    printf '%s\n' "$DEBIAN_MIRROR"
}

# debian_keyring: the file with Debian's archive keys; elsewhere it is a package signed with the machine's own keys.
debian_keyring() {
    local dir=$state/keyring files=share/keyrings/debian-archive-keyring
    first_readable /usr/$files.pgp /usr/$files.gpg "$dir/root/usr/$files.pgp" "$dir/root/usr/$files.gpg" && return
    say "fetching Debian's archive keys"
    rm -rf "$dir"
    apt_in "$dir" apt-get update && apt_in "$dir" apt-get download debian-archive-keyring || return 1
    unpack "$dir/root" "$dir"/*.deb || return 1
    rm -rf "$dir/state" "$dir/cache" "$dir"/*.deb
    first_readable "$dir/root/usr/$files.pgp" "$dir/root/usr/$files.gpg"
}

first_readable() {
    local file
    for file in "$@"; do
        [[ ! -r $file ]] || { printf '%s\n' "$file" && return; }
    done
    return 1
}

# from_debian DIR SUITES ARCHITECTURE COMMAND...: makes DIR an apt that knows Debian's SUITES, and runs the command; with
# the next mirror if either fails. No ARCHITECTURE is the machine's.
from_debian() {
    local dir=$1 suites=$2 architecture=$3 mirror keyring suite
    shift 3
    keyring=$(debian_keyring) || return 1
    while read -r mirror; do
        rm -rf "$dir"
        mkdir -p "$dir"
        [[ -z $architecture ]] || printf '%s' "$architecture" >"$dir/architecture"
        for suite in $suites; do
            case $suite in
            *-security) printf 'deb [signed-by=%s] %s %s main\n' "$keyring" "${mirror%/debian}/debian-security" "$suite" ;;
            *) printf 'deb [signed-by=%s] %s %s main\n' "$keyring" "$mirror" "$suite" ;;
            esac
        done >"$dir/sources.list"
        apt_in "$dir" apt-get -o APT::Update::Error-Mode=any update && "$@" && return
    done < <(debian_mirrors | uniq)
    return 1
}

# fetch_debs DIR SUITES PACKAGE...: downloads Debian packages of SUITES, with all they depend on, to DIR/cache.
# The last suite is the preferred one.
fetch_debs() {
    local dir=$1 suites=$2
    shift 2
    from_debian "$dir" "$suites" "" \
        apt_in "$dir" apt-get -y -t "${suites##* }" --no-install-recommends --download-only install "$@"
}

# ---- Rust ----------------------------------------------------------------------------------------------------

require_rust() {
    local version
    command -v cargo >/dev/null && command -v rustc >/dev/null ||
        die "cargo is missing: install Rust $RUST_MIN or newer with: curl --proto '=https' -sSf https://sh.rustup.rs | sh"
    version=$(rustc --version 2>/dev/null | awk '{ print $2 }') && [[ -n $version ]] ||
        die "rustc does not start: choose a Rust toolchain with: rustup default stable"
    at_least "$version" "$RUST_MIN" ||
        die "Rust $version is too old, $RUST_MIN is needed: get it with: rustup update stable"
    command -v cc >/dev/null ||
        die "the C linker 'cc' is missing, which Rust needs for programs of this machine: install it with: sudo apt-get install gcc libc6-dev"
}

# target_library: a file of the target's precompiled core library.
target_library() {
    local file
    for file in "$(rustc --print sysroot)/lib/rustlib/$TARGET/lib"/libcore-*.rlib; do
        [[ -f $file ]] && printf '%s\n' "$file" && return
    done
    return 1
}

# Rust's own linker, which rustup ships in every toolchain.
rust_lld() {
    local file
    file=$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | awk '/^host:/ { print $2 }')/bin/rust-lld
    if [[ -x $file ]]; then printf '%s\n' "$file"; else command -v rust-lld || command -v ld.lld; fi
}

# Debian 12 carries a compiler and the library source of the same version: target/rust/rustc and cargo's build-std
# make core for the target from them.
build_std_compiler() {
    local dir=$rust/fetch lib lld
    can_unpack_packages && [[ $(os_release VERSION_CODENAME) == bookworm ]] || return 1
    lld=$(rust_lld) || return 1
    say "fetching a compiler with the source of its library (220 MB, about half a minute)"
    fetch_debs "$dir" "bookworm bookworm-updates bookworm-security" rustc-web rust-web-src || return 1
    rm -rf "$rust/root" "$rust/root.new"
    unpack "$rust/root.new" "$dir"/cache/archives/*.deb || return 1
    mv "$rust/root.new" "$rust/root"
    lib=$(cd "$rust/root/usr/lib" && compgen -G '*-linux-gnu/librustc_driver-*.so') || return 1
    ln -sf "$lld" "$rust/linker"
    cat >"$rust/rustc.new" <<WRAPPER
#!/bin/sh
root=\${0%/*}/root
LD_LIBRARY_PATH=\$root/usr/lib/${lib%/*} exec "\$root/usr/bin/rustc" "\$@"
WRAPPER
    chmod +x "$rust/rustc.new"
    mv "$rust/rustc.new" "$rust/rustc"
    rm -rf "$dir"
    "$rust/rustc" --version >>"$state/apt.log" 2>&1
}

# ensure_target: prints the file that shows that the target can be built for.
ensure_target() {
    if target_library; then
        rm -f "$rust/rustc"
        return
    fi
    if command -v rustup >/dev/null; then
        say "adding the Rust target $TARGET"
        if rustup target add "$TARGET" >"$state/rustup.log" 2>&1 && target_library; then
            rm -f "$rust/rustc"
            return
        fi
    fi
    if [[ ! -x $rust/rustc ]]; then
        build_std_compiler ||
            die "the Rust target $TARGET is missing and could not be added: connect to the network and run: rustup target add $TARGET"
    fi
    printf '%s\n' "$rust/rustc"
}

fetch_crates() {
    local host
    host=$(rustc -vV | awk '/^host:/ { print $2 }')
    cargo fetch --quiet --locked --offline --manifest-path "$root/Cargo.toml" --target "$host" --target "$TARGET" 2>/dev/null && return
    say "fetching the crates of Cargo.lock"
    cargo fetch --quiet --locked --manifest-path "$root/Cargo.toml" --target "$host" --target "$TARGET" ||
        die "the crates of Cargo.lock could not be fetched: connect to the network and run: cargo fetch --locked"
}

# ---- QEMU ----------------------------------------------------------------------------------------------------

qemu_version() { "$1" --version 2>/dev/null | sed -nE '1s/.*version ([0-9]+(\.[0-9]+)*).*/\1/p'; }

qemu_is_new_enough() {
    local version
    version=$(qemu_version "$1") && [[ -n $version ]] && at_least "$version" "$QEMU_MIN"
}

private_qemu() {
    local dir=${qemu%/*} loader
    can_unpack_packages || return 1
    say "fetching QEMU $QEMU_MIN or newer into target/qemu (40 MB to load, 210 MB on disk)"
    fetch_debs "$dir/fetch" "$QEMU_SUITES" qemu-system-arm || return 1
    say "unpacking QEMU"
    rm -rf "$dir/root" "$dir/root.new"
    unpack "$dir/root.new" "$dir"/fetch/cache/archives/*.deb || return 1
    mv "$dir/root.new" "$dir/root"
    loader=$(cd "$dir/root" && compgen -G 'usr/lib*/ld-linux-*.so.*' | head -n 1) || return 1
    # The packages' own C library starts it, so that it runs beside an older one.
    cat >"$qemu.new" <<WRAPPER
#!/bin/sh
root=\${0%/*}/root
for lib in "\$root"/usr/lib/*-linux-gnu; do :; done
exec "\$root/$loader" --library-path "\$lib" "\$root/usr/bin/qemu-system-aarch64" -L "\$root/usr/share/qemu" "\$@"
WRAPPER
    chmod +x "$qemu.new"
    mv "$qemu.new" "$qemu"
    rm -rf "$dir/fetch"
}

# ensure_qemu: leaves target/qemu/qemu-system-aarch64 pointing at a QEMU that is new enough.
ensure_qemu() {
    local system
    mkdir -p "${qemu%/*}"
    if [[ -n ${RAMPART_QEMU-} ]]; then
        qemu_is_new_enough "$RAMPART_QEMU" ||
            die "RAMPART_QEMU=$RAMPART_QEMU is not a QEMU $QEMU_MIN or newer: point it at one, or unset it"
        return
    fi
    if system=$(command -v qemu-system-aarch64) && qemu_is_new_enough "$system"; then
        ln -sfn "$system" "$qemu"
        return
    fi
    [[ ! -L $qemu ]] || rm -f "$qemu"
    qemu_is_new_enough "$qemu" && return
    private_qemu && qemu_is_new_enough "$qemu" && return
    die "QEMU $QEMU_MIN or newer is missing${system:+ ($system is $(qemu_version "$system"))} and could not be fetched (target/setup/apt.log says why): connect to the network and run $0 again, or install it and set RAMPART_QEMU=/path/to/qemu-system-aarch64"
}

# ---- Linux ---------------------------------------------------------------------------------------------------

# download_linux DIR: the packages that hold the kernel's image, its modules and busybox, to DIR. Which one holds the
# image of the day says linux-image-arm64: newer suites have it apart from the modules.
download_linux() {
    local dir=$1 version
    apt_in "$dir" apt-get -t "${LINUX_SUITES##* }" download linux-image-arm64 busybox-static || return 1
    version=$(dpkg-deb -f "$dir"/linux-image-arm64_*.deb Depends | sed -nE 's/^(.*[ ,])?linux-image-([0-9][^ ,]*).*/\2/p')
    [[ -n $version ]] || return 1
    apt_in "$dir" apt-get download "linux-binary-$version" "linux-modules-$version" ||
        apt_in "$dir" apt-get download "linux-image-$version"
}

fetch_linux() {
    local dir=$linux/fetch image module
    can_unpack_packages || return 1
    say "fetching Debian's arm64 Linux and busybox into target/linux (110 MB to load, 55 MB on disk)"
    from_debian "$dir" "$LINUX_SUITES" arm64 download_linux "$dir" || return 1
    unpack "$dir/root" "$dir"/*.deb || return 1
    image=$(first_readable "$dir"/root/usr/lib/modules/*/vmlinuz "$dir"/root/boot/vmlinuz-*) || return 1
    module=$(find "$dir/root" -name virtio_mmio.ko.xz) && [[ -r $module ]] || return 1
    chmod +x "$dir/root/usr/bin/busybox"
    mv "$module" "$linux/virtio_mmio.ko.xz"
    mv "$dir/root/usr/bin/busybox" "$linux/busybox"
    mv "$image" "$linux/Image"
    rm -rf "$dir"
}

# ---- Linux's driver ------------------------------------------------------------------------------------------

# The release of the kernel that was fetched, as it names itself: 7.3.4+deb13-arm64.
linux_release() { LC_ALL=C grep -aom 1 'Linux version [^ ]*' "$linux/Image" | cut -d ' ' -f 3; }

# run_with_own_library FOLDER...: makes every program there a script that starts it with the C library it was unpacked
# with, as this machine's own may be older.
run_with_own_library() {
    local lib loader file
    lib=$(compgen -G "$tools.new/usr/lib/*-linux-gnu" | head -n 1) loader=$(compgen -G "$tools.new/usr/lib*/ld-linux-*.so.*" | head -n 1)
    [[ -n $lib && -n $loader ]] || return 1
    while read -r file; do
        [[ $(head -c 4 "$file" | tail -c 3) == ELF ]] || continue
        mv "$file" "$file.elf"
        printf '#!/bin/sh\nexec "%s" --library-path "%s" --argv0 "%s" "%s" "$@"\n' "$loader" "$lib" "$file" "$file.elf" |
            sed "s#\"$tools.new/#\"$tools/#g" >"$file"
        chmod +x "$file"
    done < <(find "$@" -type f -perm -u+x)
}

# The kernel checks that a module was built with its own headers; those ask for the compiler that built the kernel.
fetch_driver_tools() {
    local dir=$linux/fetch release version compiler headers scripts
    can_unpack_packages || return 1
    release=$(linux_release) && [[ -n $release ]] || return 1
    version=${release%-arm64}
    say "fetching the headers of Linux $release and its compiler into target/linux/tools (70 MB to load, 200 MB on disk)"
    rm -rf "$tools" "$tools.new"
    from_debian "$dir" "$LINUX_SUITES" arm64 apt_in "$dir" apt-get download "linux-headers-$release" || return 1
    unpack "$tools.new" "$dir"/*.deb || return 1
    headers=$tools.new/usr/src/linux-headers-$release
    compiler=$(sed -nE 's/^CC = .*CROSS_COMPILE\)(gcc[-0-9]*)$/\1/p' "$headers/.kernelvariables")
    [[ -n $compiler ]] || return 1
    fetch_debs "$dir" "$LINUX_SUITES" make "$compiler-aarch64-linux-gnu" "linux-headers-$version-common" \
        "linux-kbuild-$version" || return 1
    unpack "$tools.new" "$dir"/cache/archives/*.deb || return 1
    # Not needed by a module: manuals, cross libraries, link-time optimisation, type information for BPF.
    rm -rf "$dir" "$tools.new"/usr/share "$tools.new"/usr/aarch64-linux-gnu/lib "$tools.new"/usr/bin/*lto-dump* \
        "$tools.new"/usr/libexec/gcc-cross/*/*/lto* "$headers/vmlinux"
    scripts=$tools.new/usr/lib/linux-kbuild-$version/scripts
    run_with_own_library "$tools.new"/usr/bin "$tools.new"/usr/libexec/gcc-cross "$scripts" || return 1
    # It chooses by the ELF class of the target's objects, and looks for the choices under /usr.
    [[ ! -x $scripts/mod/modpost.real-lsb-64 ]] || ln -sf modpost.real-lsb-64 "$scripts/mod/modpost"
    sed -i "s# /usr/src/# $tools/usr/src/#; s#=/usr/src/#=$tools/usr/src/#" "$headers/Makefile"
    printf '%s %s\n' "$tools" "$release" >"$tools.new/for"
    mv "$tools.new" "$tools"
}

# ---- Main ----------------------------------------------------------------------------------------------------

# one_at_a_time READY: returns when no other set-up runs here; ends this one if READY then says that all is there.
one_at_a_time() {
    mkdir -p "$state"
    if command -v flock >/dev/null; then
        exec 9>"$state/lock"
        if ! flock -n 9; then
            say "another set-up is running here; waiting for it"
            flock 9
        fi
        if "$1"; then exit 0; fi
    fi
    : >"$state/apt.log"
}

linux_ready() { [[ -f $linux/Image && -f $linux/busybox && -f $linux/virtio_mmio.ko.xz ]]; }

# The tools name their own place, and are for one kernel.
driver_ready() { linux_ready && [[ -f $tools/for && $(<"$tools/for") == "$tools $(linux_release)" ]] && has_linux_target; }

peer_ready() { linux_ready && has_linux_target; }

has_linux_target() { compgen -G "$(rustc --print sysroot)/lib/rustlib/$LINUX_TARGET/lib/libstd-*.rlib" >/dev/null; }

get_linux() {
    linux_ready || fetch_linux ||
        die "Debian's arm64 Linux could not be fetched (target/setup/apt.log says why): connect to the network and run $0 --linux again, on a Debian or Ubuntu machine"
}

get_linux_target() {
    has_linux_target || rustup target add "$LINUX_TARGET" >"$state/rustup.log" 2>&1 && has_linux_target ||
        die "the Rust target $LINUX_TARGET is missing and could not be added: connect to the network and run: rustup target add $LINUX_TARGET"
}

case ${1-} in
"") ;;
--linux)
    if linux_ready; then exit 0; fi
    one_at_a_time linux_ready
    get_linux
    exit 0
    ;;
--driver)
    require_rust
    if driver_ready; then exit 0; fi
    one_at_a_time driver_ready
    get_linux
    get_linux_target
    driver_ready || fetch_driver_tools ||
        die "the headers of Linux $(linux_release) or their compiler could not be fetched (target/setup/apt.log says why): connect to the network and run $0 --driver again; if Debian has a newer kernel by now, remove target/linux before"
    exit 0
    ;;
--peer)
    require_rust
    if peer_ready; then exit 0; fi
    one_at_a_time peer_ready
    get_linux
    get_linux_target
    exit 0
    ;;
*) die "unknown option $1: there are only --linux, --driver and --peer" ;;
esac
if ready; then exit 0; fi
one_at_a_time ready
require_rust
library=$(ensure_target)
fetch_crates
ensure_qemu
remember "$root/scripts/setup.sh" "$root/Cargo.lock" "$(command -v cargo)" "$(command -v rustc)" "$(command -v cc)" \
    "$library" "${RAMPART_QEMU:-$qemu}"
