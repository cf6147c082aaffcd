#!/bin/sh
# Put a backup in the place of what the server has: sh docker/restore.sh BACKUP [SERVER_FOLDER]
# Nothing is changed before all of it was read, and nothing deleted before all of it is in place.
set -eu
backup=${1:?usage: sh docker/restore.sh BACKUP [SERVER_FOLDER]}
. "$(dirname "$0")/stores.sh"
umask 077
for file in mlflow.dump mlflow_auth.dump artifacts.tar; do
    grep -q "  $file\$" "$backup/SHA256SUMS" || { echo "$backup is no whole backup: SHA256SUMS lacks $file" >&2; exit 2; }
done
(cd "$backup" && sha256sum --check --quiet SHA256SUMS)
of=postgresql # backups from before sqlite could be backed up do not say
[ ! -f "$backup/store" ] || of=$(cat "$backup/store")
if [ "$of" != "$store" ]; then
    echo "$backup is of a server with $of, and this one has $store; restore it to a folder with --store $of" >&2
    exit 2
fi
for database in mlflow mlflow_auth; do
    check "$backup/$database.dump"
done

forget() { on_files rm -rf "$artifacts/.restoring"; }
trap forget EXIT
forget
on_files mkdir "$artifacts/.restoring"
on_files tar -C "$artifacts/.restoring" -xf - < "$backup/artifacts.tar"
pause
for database in mlflow mlflow_auth; do
    load "$database" "$backup/$database.dump"
done
# shellcheck disable=SC2016
on_files sh -eu -c '
    cd "$1"
    mkdir -p .replaced
    find . -mindepth 1 -maxdepth 1 ! -name .restoring ! -name .replaced -exec mv {} .replaced/ \;
    find .restoring -mindepth 1 -maxdepth 1 -exec mv {} . \;
    rm -rf .replaced
' swap "$artifacts"
go_on
echo "restored $backup"
