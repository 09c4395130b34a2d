-- The history writer stages fixes that may be there already in a temporary table of its connection (engine/store/history.sql: stage).
-- Everybody may make such tables unless an administrator took that away; the application keeps the right by its own name.

do $$
begin
  execute format('grant temporary on database %I to timepoint_app', current_database());
end $$;
