-- What is compared beside the approved answers: recent traffic, and prompts that have nothing to do with the workload.

ALTER TABLE evaluations ADD COLUMN agreement DOUBLE;        -- of the candidate's answer with the champion's, or else with the logged one, 0 to 1
