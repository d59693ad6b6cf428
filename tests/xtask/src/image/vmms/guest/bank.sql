BEGIN;
CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
CREATE TABLE transfer(id INTEGER PRIMARY KEY, source INTEGER, target INTEGER, amount INTEGER);
CREATE INDEX transfer_source ON transfer(source);
CREATE INDEX transfer_target ON transfer(target);
WITH RECURSIVE account_id(id) AS (VALUES(0) UNION ALL SELECT id + 1 FROM account_id WHERE id < 49)
    INSERT INTO account SELECT id, 1000 FROM account_id;
COMMIT;
