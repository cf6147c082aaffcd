#!/bin/sh
# Runs, logins and files into one folder, while the server runs: sh docker/backup.sh OUT [SERVER_FOLDER]
set -eu
out=${1:?usage: sh docker/backup.sh OUT [SERVER_FOLDER]}
. "$(dirname "$0")/stores.sh"
umask 077
mkdir "$out"
echo "$store" > "$out/store"
# Rows before files: a file is on the server before anything counts on it, so every file of these rows is in the tar.
for database in mlflow mlflow_auth; do
    dump "$database" "$out/$database.dump"
done
# 1: a file changed while it was read, which no row of the dump counts on yet
on_files tar -C "$artifacts" -cf - . > "$out/artifacts.tar" || [ $? -eq 1 ]
# last, so that a backup that was cut off has none
(cd "$out" && sha256sum store mlflow.dump mlflow_auth.dump artifacts.tar > SHA256SUMS.new && mv SHA256SUMS.new SHA256SUMS)
echo "backed up into $out ($(du -sh "$out" | cut -f1)); keep docker/.env, or secrets.json, apart from it"
