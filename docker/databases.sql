-- Logins live beside the runs, in a database of their own.
CREATE DATABASE mlflow_auth OWNER mlflow;
