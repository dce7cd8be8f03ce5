#!/usr/bin/env bash
# Gets the real servers for tests/servers: from Debian's packages what it has, the rest built with Go, once a version.
# What cannot be had is told in the end, and nothing else waits for it.
# What is built lies in ~/.cache/otel-mlops/servers (XDG_CACHE_HOME moves it), with links in its folder bin.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source tests/servers/versions.env

GO_NEEDED=1.26.7
cache=${XDG_CACHE_HOME:-$HOME/.cache}/otel-mlops/servers
mkdir -p "$cache/bin"
cache=$(cd "$cache" && pwd)
missing=()
work=
trap 'rm -rf "${work:-}"' EXIT
trap 'exit 130' INT TERM

has() { command -v "$1" >/dev/null; }
has_compiler() { has cc || has gcc || has clang; }
has_chromium() { has chromedriver && { has chromium || has chromium-browser || has google-chrome; }; }

# --- Debian and Ubuntu ----------------------------------------------------------------------------------------

packages=()
if ! has prometheus || ! has promtool; then packages+=(prometheus); fi
if ! has_compiler; then packages+=(gcc libc6-dev); fi
has openssl || packages+=(openssl)
if ! has_chromium; then packages+=(chromium chromium-driver fonts-dejavu-core); fi
if [ "${#packages[@]}" -gt 0 ] && has apt-get; then
    as_root=()
    [ "$(id -u)" -eq 0 ] || as_root=(sudo)
    "${as_root[@]}" apt-get update -qq || true
    for package in "${packages[@]}"; do  # one by one: other distributions lack some
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends "$package" ||
            echo "apt-get could not install $package" >&2
    done
fi

has_compiler || missing+=("a C compiler, for the NVIDIA driver that the tests make. Debian: apt-get install gcc libc6-dev. macOS: xcode-select --install")
for program in prometheus promtool; do
    has "$program" || missing+=("$program on the PATH: the second version to test with. Debian: apt-get install prometheus. macOS: brew install prometheus")
done
has_chromium || missing+=("Chromium and chromedriver on the PATH, for the page for people. Debian: apt-get install chromium chromium-driver")
has openssl || missing+=("openssl on the PATH, for certificates. Debian: apt-get install openssl")

# --- With Go --------------------------------------------------------------------------------------------------

# Says whether this Go is new enough.
has_go() {
    has go && printf '%s\n' "$GO_NEEDED" "$(GOTOOLCHAIN=local go env GOVERSION | tr -d go)" | sort --check=quiet --version-sort
}

# Calls a function in an empty folder, and keeps what it leaves there under this name, if it succeeds.
build() {
    local name=$1
    [ -d "$cache/$name" ] && return
    if ! has_go; then
        missing+=("$name, which is built with Go $GO_NEEDED or newer: https://go.dev/dl")
        return
    fi
    echo "Building $name, once: some minutes"
    work=$(mktemp -d "$cache/.$name.XXXX")
    if (cd "$work" && CGO_ENABLED=0 "$2" >build.log 2>&1); then
        mv "$work" "$cache/$name"
    else
        tail -n 20 "$work/build.log" >&2
        rm -rf "$work"
        missing+=("$name, which could not be built: see above")
    fi
}

go_install() { GOBIN=$PWD go install -trimpath "$@"; }

build_collector() {
    go_install "go.opentelemetry.io/collector/cmd/builder@v$COLLECTOR" &&
        ./builder --config "$manifest" &&
        mv _build/otelcol-mlops . &&
        rm -rf _build builder
}

build_prometheus() {
    # Without service discovery for clouds, of which the tests use none, it is half as large.
    local module=github.com/prometheus/prometheus version=v0.${PROMETHEUS/./}
    go_install -tags netgo,remove_all_sd -ldflags "-s -w -X github.com/prometheus/common/version.Version=$PROMETHEUS" \
        "$module/cmd/prometheus@$version" "$module/cmd/promtool@$version"
}

build_alertmanager() {
    local module=github.com/prometheus/alertmanager
    go_install "$module/cmd/alertmanager@v$ALERTMANAGER" "$module/cmd/amtool@v$ALERTMANAGER"
}

build_compose() {
    go_install "github.com/compose-spec/compose-go/v2/cmd@v$COMPOSE_GO" && mv cmd compose-go
}

# The folder in which Go keeps a module's files.
module() { go mod download -json "$1" | sed -n 's/^.*"Dir": "\(.*\)",*$/\1/p'; }

build_schemas() {
    local kubernetes prometheus opentelemetry
    kubernetes=$(module "k8s.io/kubernetes@v$KUBERNETES") &&
        prometheus=$(module "github.com/prometheus-operator/prometheus-operator@v$PROMETHEUS_OPERATOR") &&
        opentelemetry=$(module "github.com/open-telemetry/opentelemetry-operator@v$OPENTELEMETRY_OPERATOR") &&
        cp "$kubernetes"/api/openapi-spec/v3/{api__v1,apis__apps__v1,apis__networking.k8s.io__v1,apis__rbac.authorization.k8s.io__v1}_openapi.json . &&
        cp "$prometheus"/example/prometheus-operator-crd/monitoring.coreos.com_{podmonitors,prometheuses,prometheusrules,servicemonitors}.yaml . &&
        cp "$opentelemetry/config/crd/bases/opentelemetry.io_opentelemetrycollectors.yaml" .
}

manifest=$PWD/collector-config/builder.yaml
collector=collector-$COLLECTOR-$(grep -v "^#" "$manifest" | cksum | cut -d ' ' -f 1)
schemas=schemas-$KUBERNETES-$PROMETHEUS_OPERATOR-$OPENTELEMETRY_OPERATOR
build "$collector" build_collector
build "prometheus-$PROMETHEUS" build_prometheus
build "alertmanager-$ALERTMANAGER" build_alertmanager
build "compose-go-$COMPOSE_GO" build_compose
build "$schemas" build_schemas
ln -sfn "$schemas" "$cache/schemas"
for program in "$collector/otelcol-mlops" prometheus-"$PROMETHEUS"/{prometheus,promtool} \
    alertmanager-"$ALERTMANAGER"/{alertmanager,amtool} "compose-go-$COMPOSE_GO/compose-go"; do
    ln -sfn "../$program" "$cache/bin/${program##*/}"
done

if [ "${#missing[@]}" -gt 0 ]; then
    echo "Missing; the tests that need it skip:" >&2
    printf '  %s\n' "${missing[@]}" >&2
    exit 1
fi
"$cache/bin/otelcol-mlops" --version
prometheus --version 2>&1 | head -n 1
"$cache/bin/prometheus" --version | head -n 1
"$cache/bin/alertmanager" --version | head -n 1
