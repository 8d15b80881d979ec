ALTER TABLE tombstones ADD COLUMN since TIMESTAMP;  -- for conversations: earlier events are stored; null: no event is
