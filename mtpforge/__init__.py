"""mtpforge: builds the MTP draft layer of GLM-5.2 in exactly the scheme that a quantized target asks for."""
