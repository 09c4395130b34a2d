-- What PostgreSQL counts anyway, looked at when the hold begins and ends: the figures are what has been added in between.

-- name: activity
-- Of the product's database: transactions, what was read and written. Statistics of other backends are up to a second old.
select xact_commit as commits, xact_rollback as rollbacks, blks_read as blocks_read, blks_hit as blocks_hit, tup_returned as rows_returned,
  tup_inserted as rows_inserted, tup_updated as rows_updated, tup_deleted as rows_deleted, deadlocks, temp_bytes
from pg_stat_database where datname = current_database();

-- name: wal
-- Of the whole server (PostgreSQL 14 and later).
select wal_records, wal_bytes, wal_fpi as wal_full_pages from pg_stat_wal;
