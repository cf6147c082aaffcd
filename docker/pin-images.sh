#!/bin/sh
# Pin the images that others made by their digests: sh docker/pin-images.sh [FILE]
# It pulls each and writes NAME=IMAGE@sha256:... into docker/.env, which compose.yaml reads; without such a line the tag is
# taken. For docker build: --build-arg "$(grep ^PYTHON_IMAGE= docker/.env)". Run it again to move to newer ones.
set -eu
file=${1:-$(dirname "$0")/.env}
engine=${ENGINE:-docker}
pinned=
for line in PYTHON_IMAGE=python:3.11-slim POSTGRES_IMAGE=postgres:17 CADDY_IMAGE=caddy:2; do
    name=${line%%=*} image=${line#*=}
    "$engine" pull --quiet "$image" > /dev/null
    digest=$("$engine" image inspect --format '{{index .RepoDigests 0}}' "$image")
    case $digest in
        *@sha256:*) ;;
        *) echo "$engine knows no digest of $image (it said: $digest); nothing was written" >&2; exit 1 ;;
    esac
    pinned="$pinned$name=$digest
"
done
umask 077
{ [ ! -e "$file" ] || grep -v -E '^#?(PYTHON|POSTGRES|CADDY)_IMAGE=' "$file" || true; printf '%s' "$pinned"; } > "$file.new"
mv "$file.new" "$file"
echo "pinned three images in $file"
