# Read by backup.sh and restore.sh: how to reach the database and the files, of the compose stack, or of
# `ehrtrack server --store postgresql` with its folder as the second argument (while it runs).
if [ $# -ge 2 ]; then
    folder=$(cd "$2" && pwd)
    artifacts=$folder/artifacts
    mkdir -p "$artifacts"
    PGHOST=127.0.0.1
    PGUSER=mlflow
    PGPORT=$(sed -n 4p "$folder/postgres/postmaster.pid")
    PGPASSWORD=$(sed -n 's/.*"postgres_password": "\(.*\)".*/\1/p' "$folder/secrets.json")
    export PGHOST PGUSER PGPORT PGPASSWORD
    on_database() { "$@"; }
    on_files() { "$@"; }
    pause() { :; }
    go_on() { :; }
else
    artifacts=/artifacts
    compose() { docker compose -f "$(dirname "$0")/compose.yaml" "$@"; }
    on_database() { compose exec -T -e PGUSER=mlflow database "$@"; }
    on_files() { compose run --rm --no-deps -T mlflow "$@"; }
    pause() { compose stop caddy mlflow; }
    go_on() { compose up -d --wait; }
fi
