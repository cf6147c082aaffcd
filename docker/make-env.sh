#!/bin/sh
# Write docker/.env with new secrets: sh docker/make-env.sh runs.example.org
# An .env that is there is left alone: its passwords belong to data that exists.
set -eu
domain=${1:?usage: sh docker/make-env.sh DOMAIN [FILE], such as runs.example.org, or localhost to try it}
file=${2:-$(dirname "$0")/.env}
if [ -e "$file" ]; then
    echo "$file is there already; its passwords belong to the data on the volumes. Edit it, or move it away." >&2
    exit 1
fi
secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
umask 077
cat > "$file" <<END
# Made by docker/make-env.sh. Never commit it; keep a copy apart from the backups.
DOMAIN=$domain
# Names that clients call the server by (with :port unless it is 443), and web pages that may call it; commas between.
ALLOWED_HOSTS=$domain,localhost:5000,127.0.0.1:5000
CORS_ORIGINS=https://$domain
POSTGRES_PASSWORD=$(secret)
MLFLOW_ADMIN_PASSWORD=$(secret)
FLASK_SECRET_KEY=$(secret)
# Files go to a volume; for S3: s3://bucket/path, its keys, and the address if it is not Amazon's.
ARTIFACTS=/artifacts
#AWS_ACCESS_KEY_ID=
#AWS_SECRET_ACCESS_KEY=
#MLFLOW_S3_ENDPOINT_URL=
# Images of others by their digests: sh docker/pin-images.sh fills these in.
#PYTHON_IMAGE=
#POSTGRES_IMAGE=
#CADDY_IMAGE=
END
echo "wrote $file"
