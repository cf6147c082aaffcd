#!/bin/sh
# Put a backup in the place of what the server has: sh docker/restore.sh BACKUP [SERVER_FOLDER]
set -eu
backup=${1:?usage: sh docker/restore.sh BACKUP [SERVER_FOLDER]}
. "$(dirname "$0")/stores.sh"
(cd "$backup" && sha256sum --check --quiet SHA256SUMS)
pause
for database in mlflow mlflow_auth; do
    # all of it or nothing, in one transaction
    on_database pg_restore --clean --if-exists --no-owner --single-transaction --dbname="$database" < "$backup/$database.dump"
done
on_files find "$artifacts" -mindepth 1 -delete
on_files tar -C "$artifacts" -xf - < "$backup/artifacts.tar"
go_on
echo "restored $backup"
