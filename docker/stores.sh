# Read by backup.sh and restore.sh: how to reach the databases and the files, of the compose stack, or of
# `ehrtrack server` with its folder as the second argument (while it runs).
pause() { :; }
go_on() { :; }
on_files() { "$@"; }
store=postgresql
if [ $# -lt 2 ]; then
    artifacts=/artifacts
    compose() { docker compose -f "$(dirname "$0")/compose.yaml" "$@"; }
    on_database() { compose exec -T -e PGUSER=mlflow database "$@"; }
    on_files() { compose run --rm --no-deps -T mlflow "$@"; }
    pause() { compose stop caddy mlflow; }
    go_on() { compose up -d --wait; }
else
    [ -d "$2" ] || { echo "$2 is no folder; give that of ehrtrack server --folder" >&2; exit 2; }
    folder=$(cd "$2" && pwd)
    artifacts=$folder/artifacts
    if [ -f "$folder/postgres/postmaster.pid" ]; then
        PGHOST=127.0.0.1
        PGUSER=mlflow
        PGPORT=$(sed -n 4p "$folder/postgres/postmaster.pid")
        PGPASSWORD=$(sed -n 's/.*"postgres_password": "\(.*\)".*/\1/p' "$folder/secrets.json")
        export PGHOST PGUSER PGPORT PGPASSWORD
        on_database() { "$@"; }
    elif [ -d "$folder/postgres" ]; then
        echo "the server of $folder does not run, and its runs are in PostgreSQL; start it: ehrtrack server --folder $folder" >&2
        exit 2
    elif [ -f "$folder/mlflow.db" ]; then
        store=sqlite
    else
        echo "$folder has no runs, in postgres/ or mlflow.db; give the folder of ehrtrack server --folder" >&2
        exit 2
    fi
    mkdir -p "$artifacts"
fi

# A database into a file (dump), and back (load) whole or not at all, while it is in use; `check` reads all of a file.
if [ $store = postgresql ]; then
    dump() { on_database pg_dump --format=custom "$1" > "$2"; }
    check() { on_database pg_restore --file=/dev/null < "$1"; }
    load() { on_database pg_restore --clean --if-exists --no-owner --single-transaction --dbname="$1" < "$2"; }
else
    file_of() { case $1 in mlflow) echo "$folder/mlflow.db" ;; *) echo "$folder/auth.db" ;; esac; }
    copy() {
        python3 - "$1" "$2" <<'END'
import contextlib, sqlite3, sys
with contextlib.closing(sqlite3.connect(sys.argv[1])) as source, contextlib.closing(sqlite3.connect(sys.argv[2])) as target:
    found = source.execute("PRAGMA quick_check").fetchone()[0]
    if found != "ok":
        sys.exit(f"{sys.argv[1]} is damaged: {found}")
    if sys.argv[2] != ":memory:":
        source.backup(target)
END
    }
    check() { copy "$1" :memory:; }
    dump() { copy "$(file_of "$1")" "$2"; }
    load() { copy "$2" "$(file_of "$1")"; }
fi
