#!/bin/sh
# Make a user and the file a pod needs: sh docker/add-user.sh pod  ->  pod.env
set -eu
user=${1:?usage: sh docker/add-user.sh NAME}
here=$(dirname "$0")
case $user in *[!A-Za-z0-9_-]*) echo "the name $user has more than letters, digits, _ and -" >&2; exit 1 ;; esac
value() { sed -n "s/^$1=//p" "$here/.env"; }
address="https://$(value DOMAIN)"
umask 077
password=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
# by standard input: a command line is for everybody on the machine to read
curl --fail --silent --show-error --output /dev/null --config - <<END
url = "$address/api/2.0/mlflow/users/create"
user = "admin:$(value MLFLOW_ADMIN_PASSWORD)"
header = "Content-Type: application/json"
data = "{\"username\": \"$user\", \"password\": \"$password\"}"
END
# 128 random bits need no slow hash: mlflow's takes 0.1 s and 32 MB for each call that its cache does not know
compose() { docker compose -f "$here/compose.yaml" "$@"; }
hash=$(printf %s "$password" | compose exec -T mlflow python -c \
    'import sys; from werkzeug.security import generate_password_hash as h; print(h(sys.stdin.read(), "pbkdf2:sha256:1000"))')
printf "UPDATE users SET password_hash = '%s' WHERE username = '%s';\n" "$hash" "$user" |
    compose exec -T database psql --quiet --set ON_ERROR_STOP=1 -U mlflow mlflow_auth
cat > "$user.env" <<END
MLFLOW_TRACKING_URI=$address
MLFLOW_TRACKING_USERNAME=$user
MLFLOW_TRACKING_PASSWORD=$password
END
echo "wrote $user.env; on the pod: set -a; . ./$user.env; set +a; ehrtrack doctor"
