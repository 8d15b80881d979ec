-- What models were asked and answered. Demonstrations come from files, show how to answer, and are nobody's traffic.
CREATE VIEW traffic AS SELECT * FROM interactions WHERE model <> 'demonstration';
