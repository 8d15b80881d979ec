-- The text of a message, which is a string or a list of parts; null without any.
CREATE MACRO message_text(message) AS CASE json_type(message, '$.content')
    WHEN 'ARRAY' THEN array_to_string(
        nullif(list_filter(
            list_transform(
                list_filter(
                    (message -> 'content')::JSON[], lambda part: (part ->> 'type') IN ('text', 'input_text', 'output_text')
                ),
                lambda part: part ->> 'text'
            ),
            lambda text: text IS NOT NULL
        ), []),
        E'\n'
    )
    ELSE message ->> 'content'
END;

-- The last message of the user; null if there is none.
CREATE MACRO last_question(messages) AS message_text(
    list_last(list_filter(messages::JSON[], lambda message: message ->> 'role' = 'user'))
);
