-- Of which the grounding scorer alarms is no hallucination rate: it alarms on good answers, too.

UPDATE quality SET metric = 'alarm_rate' WHERE metric = 'hallucination_rate' AND source = 'grounding';
