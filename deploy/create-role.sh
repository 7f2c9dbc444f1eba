#!/bin/sh
# Runs once, when PostgreSQL's volume is empty: a role that owns its database and nothing else.
set -eu
psql --set=ON_ERROR_STOP=1 --username="$POSTGRES_USER" --dbname=postgres --set=password="$DATABASE_PASSWORD" <<'SQL'
CREATE ROLE registrar LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'password';
CREATE DATABASE registrar OWNER registrar;
REVOKE ALL ON DATABASE registrar FROM PUBLIC;
SQL
